# SPDX-License-Identifier: Apache-2.0
"""How settings are declared, checked and read: what `config` and other configurations are made of.

A section is a frozen dataclass. What a field may be stands beside it, in its type:

    class LoraConfig(Settings, path="config.lora"):
        rank: Annotated[int, at_least(1)] = 8
"""

import dataclasses
import difflib
import math
import operator
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

from ml_collections import config_dict


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the field and what would be right."""


class Check(NamedTuple):
    """What a field must be, in words, and whether a value is that."""

    wanted: str
    holds: Callable[[Any], bool]


class Plain(NamedTuple):
    """What a field that is None is after all, where no recipe has chosen."""

    value: Any


def at_least(bound: int) -> Check:
    return Check(f"at least {bound}", lambda value: value >= bound)


def one_of(*choices: str) -> Check:
    wanted = " or ".join(choices) if len(choices) < 3 else "one of " + ", ".join(choices)
    return Check(wanted, choices.__contains__)


ABOVE_0 = Check("positive", lambda value: value > 0)
POSITIVE = Check("positive and finite", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = Check("at least 0 and finite", lambda value: 0 <= value < math.inf)
SHARE = Check("in (0, 1)", lambda value: 0 < value < 1)
CHANCE = Check("in [0, 1]", lambda value: 0 <= value <= 1)
NOT_EMPTY = Check("non-empty", lambda value: len(value) > 0)


class Settings:
    """Base of sections and of whole configurations, which are dataclasses of sections.

    Class argument `path`: how messages call it, say "config.lora".
    """

    _path = "config"

    def __init_subclass__(cls, path: str | None = None):
        cls._path = path or cls._path

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, marks = getattr(self, field.name), getattr(field.type, "__metadata__", ())
            for plain in marks if value is None else ():
                if isinstance(plain, Plain):
                    value = plain.value
                    object.__setattr__(self, field.name, value)
            for check in marks:
                if value is None or isinstance(check, Plain):
                    continue
                optional = isinstance(field.type.__origin__, types.UnionType)
                or_none = " or None" if optional and "None" not in check.wanted else ""
                self.require(check.holds(value), field.name, check.wanted + or_none)

    def require(self, holds: bool, field: str, wanted: str) -> None:
        """ConfigError unless `holds`, which names the field (of a section: "lora.rank"), its value
        and what is wanted."""
        if not holds:
            value = operator.attrgetter(field)(self)
            raise ConfigError(f"{self._path}.{field} must be {wanted}, not {value!r}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Validates nested plain values; ConfigError names an unknown or ill-typed field."""
        hints = typing.get_type_hints(cls)
        for name in values:
            if name not in hints:
                close = difflib.get_close_matches(name, hints, n=1)
                hint = f"did you mean {close[0]}?" if close else f"fields are {', '.join(hints)}"
                raise ConfigError(f"{cls._path}.{name} is not a setting; {hint}")
        return cls(**{n: _cast(hints[n], v, f"{cls._path}.{n}") for n, v in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready nested dictionaries."""
        return dataclasses.asdict(self)

    @classmethod
    def defaults(cls) -> config_dict.ConfigDict:
        """As flags and config files change them: with types, and unknown fields are errors."""
        result = config_dict.ConfigDict()
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if isinstance(field.default, Settings):
                result[field.name] = type(field.default).defaults()
                continue
            if (inner := _not_none(hints[field.name])) is not hints[field.name]:
                # A typed placeholder, so that flags can set the field, to None too.
                result[field.name] = config_dict.placeholder(typing.get_origin(inner) or inner)
            result[field.name] = field.default
        return result.lock()


def _not_none(hint: Any) -> Any:
    """`int | None` -> int; other types as they are."""
    if not isinstance(hint, types.UnionType):
        return hint
    (inner,) = (h for h in typing.get_args(hint) if h is not types.NoneType)
    return inner


def _cast(hint: Any, value: Any, path: str) -> Any:
    """The value as the type of the field; lossless conversions only."""
    if isinstance(hint, type) and issubclass(hint, Settings):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} must be a section with fields, not {value!r}")
        return hint.from_dict(value)
    if value is None and isinstance(hint, types.UnionType):
        return None
    hint = _not_none(hint)
    if typing.get_origin(hint) is tuple:
        if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise ConfigError(f"{path} must be a list of names, not {value!r}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{path} must be of type {hint.__name__}, not {value!r}")
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError(f"{path} must be a number, not nan")
    return value
