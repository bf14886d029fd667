"""The policies by name: the package's own and those that users register."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from foreal_core.errors import ConfigError, did_you_mean
from foreal_core.policies.gate import DrawnGate, Gate
from foreal_core.policies.spans import Policy

if TYPE_CHECKING:
    pass

PolicyFactory: TypeAlias = Callable[..., Policy]
"""`factory(config, gate)`, or `factory(config, gate, options)` where it was registered with a
dataclass of options; returns the generator of one request."""

_ALIASES = {"pattern": "even"}


@dataclass(frozen=True)
class PolicySpec:
    """A registered policy.

    Attributes:
        name: what `policy=` takes.
        factory: makes the policy of one request.
        options: the dataclass of its own options, if it has any.
        gate: makes the gate of one request from its seed.
        about: one line that says who writes.
    """

    name: str
    factory: PolicyFactory
    options: type[Any] | None = None
    gate: Callable[[int], Gate] = DrawnGate
    about: str = ""

    def checked_options(self, given: Mapping[str, Any] | Any | None) -> Any:
        """An instance of `options` from a mapping or an instance; None where there are none.

        Raises:
            ConfigError: an option that the policy does not have, or a value that it refuses.
        """
        if self.options is None:
            if given:
                raise ConfigError(f"policy {self.name!r} has no options, but {given!r} was given.")
            return None
        if isinstance(given, self.options):
            return given
        if given is not None and not isinstance(given, Mapping):
            raise ConfigError(
                f"policy_options={given!r} is not allowed: a mapping or a {self.options.__name__}."
            )
        given = dict(given or {})
        known = [field.name for field in dataclasses.fields(self.options)]
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"policy {self.name!r} has no option {name!r}.{did_you_mean(name, known)} "
                    f"Its options: {', '.join(known)}."
                )
        try:
            return self.options(**given)
        except ConfigError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(f"policy {self.name!r} refuses {given!r}: {error}.") from error


_registry: dict[str, PolicySpec] = {}


def register_policy(
    name: str,
    factory: PolicyFactory,
    *,
    options: type[Any] | None = None,
    gate: Callable[[int], Gate] = DrawnGate,
) -> None:
    """Makes `policy=name` known; a name that is taken is refused.

    Args:
        name: as users write it.
        factory: called as `factory(config, gate)` for each request, with `options` as
            `factory(config, gate, options)`; returns a generator that yields a `Write` for each
            span and is sent its `SpanReport`. The first line of its docstring says who writes.
        options: a dataclass whose fields all have defaults; `policy_options=` fills them.
        gate: makes the request's gate from its seed; `EvenGate` leads evenly instead of by chance.

    Raises:
        ConfigError: a wrong argument, or a name that is taken.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"a policy's name must be a non-empty str, not {name!r}.")
    if name in _registry or name in _ALIASES:
        raise ConfigError(
            f"policy {name!r} is registered already: choose another name, or forget it "
            "first (foreal_core.policies.unregister_policy)."
        )
    if not callable(factory):
        raise ConfigError(f"policy {name!r} needs a callable, not {factory!r}.")
    if options is not None:
        _refuse_unless_options(name, options)
    _registry[name] = PolicySpec(name, factory, options, gate, _about(factory))


def unregister_policy(name: str) -> None:
    """Forgets a policy; requests that run with it go on."""
    _registry.pop(name, None)


def policy_names() -> list[str]:
    """All names that `policy=` takes, aliases left out."""
    return list(_registry)


def policy_specs() -> list[PolicySpec]:
    """All registered policies."""
    return list(_registry.values())


def find_policy(policy: str | PolicyFactory) -> PolicySpec:
    """The policy of that name, or one made of a factory.

    Raises:
        ConfigError: there is none of that name; it lists those that there are.
    """
    if callable(policy):
        name = getattr(policy, "__name__", type(policy).__name__)
        return PolicySpec(name, policy, about=_about(policy))
    if policy in _ALIASES:
        warnings.warn(
            f"policy={policy!r} is now called {_ALIASES[policy]!r}.", FutureWarning, stacklevel=2
        )
        policy = _ALIASES[policy]
    spec = _registry.get(policy) if isinstance(policy, str) else None
    if spec is None:
        known = policy_names()
        raise ConfigError(
            f"policy={policy!r} is not allowed: it must be one of "
            f"{', '.join(map(repr, known))}, or a factory of your own (see register_policy)."
            f"{did_you_mean(str(policy), known)}"
        )
    return spec


def _refuse_unless_options(name: str, options: type[Any]) -> None:
    if not (isinstance(options, type) and dataclasses.is_dataclass(options)):
        raise ConfigError(f"options={options!r} of policy {name!r} must be a dataclass.")
    for field in dataclasses.fields(options):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(
                f"option {field.name!r} of policy {name!r} needs a default: every setting has one."
            )


def _about(factory: PolicyFactory) -> str:
    text = " ".join((factory.__doc__ or "").split())
    return text.split(". ")[0].rstrip(".") + "." if text else ""
