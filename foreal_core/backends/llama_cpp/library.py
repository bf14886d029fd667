"""llama.cpp's C interface, as llama-cpp-python's low-level module gives it.

Its calls leave the GIL while they run.
"""

from __future__ import annotations

import ctypes
import functools
from collections import deque
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from foreal_core.errors import ConfigError

# The oldest that the tests ran with. Structures are passed by value: an older library may lay them
# out differently.
OLDEST = (0, 3, 36)
_INSTALL = (
    "pip install 'foreal-decoding[llama-cpp]' builds it for this machine's CPU (it needs a C++ "
    "compiler and some minutes), and for a GPU with, before it, CMAKE_ARGS='-DGGML_CUDA=on' (or "
    "-DGGML_METAL=on, -DGGML_VULKAN=on)"
)
_WARNING = 3  # ggml_log_level: 1 debug, 2 info, 3 warning, 4 error, 5 goes on with the last
_GOES_ON = 5
# llama.cpp says why something failed in its log alone.
_said: deque[str] = deque(maxlen=20)


def is_installed() -> bool:
    """Whether the package is there, of whatever version."""
    try:
        version("llama_cpp_python")
    except PackageNotFoundError:
        return False
    return True


@functools.cache
def library() -> Any:
    """The module `llama_cpp.llama_cpp`, ready for use.

    Raises:
        ConfigError: the package is missing, too old or broken; the message says how to install it.
    """
    try:
        found = version("llama_cpp_python")
    except PackageNotFoundError:
        raise ConfigError(
            f"GGUF files need the package llama-cpp-python. {_INSTALL}. "
            "backend='torch' reads them without it and dequantises them."
        ) from None
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:3] if part.isdigit())
    wanted = ".".join(map(str, OLDEST))
    if numbers < OLDEST:
        raise ConfigError(
            f"llama-cpp-python {found} is too old: {wanted} or a later one is needed. "
            f"{_INSTALL}; add --upgrade."
        )
    try:
        module: Any = import_module("llama_cpp.llama_cpp")
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"llama-cpp-python {found} does not load: {error}. Build it anew on this machine: "
            f"{_INSTALL}; add --force-reinstall --no-cache-dir."
        ) from error
    module.llama_log_set(_listener(module), ctypes.c_void_p(0))
    module.llama_backend_init()
    return module


@functools.cache
def _listener(module: Any) -> Any:
    """Kept for good: the library calls it whenever it has something to say."""
    last = 0

    def listen(level: int, text: bytes | None, user_data: Any) -> None:
        nonlocal last
        last = last if level == _GOES_ON else level
        if last >= _WARNING and text:
            _said.append(text.decode("utf-8", "replace"))

    return module.llama_log_callback(listen)


def forget_what_was_said() -> None:
    """Before a call whose failure is to be explained."""
    _said.clear()


def what_was_said() -> str:
    """Warnings and errors of the library since then, in one line; "" where none."""
    return " ".join("".join(_said).split())
