"""Optional packages: imported, or named in an error with the extra that installs them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from foreal_core.errors import ConfigError


def extra_module(name: str, extra: str, purpose: str) -> ModuleType:
    """Imports an optional package.

    Raises:
        ConfigError: it is not installed; the message names the extra.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{purpose} needs {name}, which the extra {extra!r} brings: "
            f"pip install 'foreal-decoding[{extra}]'."
        ) from error
