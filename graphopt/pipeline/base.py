"""What a pass is: a frozen dataclass whose typed fields are its options and whose docstring is its help text."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt import spec
from graphopt.errors import UsageError

if TYPE_CHECKING:
    from graphopt.ir.model import Model
    from graphopt.pipeline.context import Context


class Kind(Enum):
    """What a pass promises about the outputs of the model."""

    EXACT = "exact"  # unchanged beyond float noise; the manager checks it
    LOSSY = "lossy"  # changed; the gates decide whether that is acceptable


@dataclass(frozen=True)
class Skipped:
    """Something a pass considered and left alone, with a reason that a user can act on.

    ``macs_held_back``: multiply-accumulates at batch 1 that could be saved at most if it were not, where that is known.
    """

    node: str
    op: str
    reason: str
    macs_held_back: int | None = None


@dataclass
class PassResult:
    """What a pass did. ``metrics`` are plain JSON values that the pass chooses.

    ``again`` is the specification that gives the same bytes again, where the pass's own leaves that to time.
    """

    changed: bool
    metrics: dict[str, Any] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    again: str | None = None


def option(
    default: Any,
    help: str,
    *,
    min: float | None = None,
    max: float | None = None,
    choices: Collection[str] | None = None,
) -> Any:
    """Declare an option of a pass: a default, one line of help, and the values it may take (bounds inclusive).

    ``choices`` may grow later, where what can be chosen is registered.
    """
    return field(default=default, metadata={"help": help, "min": min, "max": max, "choices": choices})


@dataclass(frozen=True)
class OptionInfo:
    """An option as help texts and error messages speak of it."""

    name: str
    type: Any
    default: Any
    help: str
    min: float | None
    max: float | None
    choices: Collection[str] | None

    @property
    def allowed(self) -> str:
        """The permitted values, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        kind = _type_name(self.type)
        if self.min is not None and self.max is not None:
            return f"{kind} from {self.min:g} to {self.max:g}"
        if self.min is not None:
            return f"{kind}, at least {self.min:g}"
        if self.max is not None:
            return f"{kind}, at most {self.max:g}"
        return kind


@dataclass(frozen=True)
class Pass(ABC):
    """Base class of all passes. A subclass sets ``name`` and ``kind``, declares options, and implements ``run``."""

    name: ClassVar[str]
    kind: ClassVar[Kind]
    requires: ClassVar[tuple[str, ...]] = ()
    # Whether what applies the changes of this kind of pass also counts them. One that says it changed nothing is then
    # believed until the next pass of another kind, or the end, where the model is compared with what it was.
    counts_changes: ClassVar[bool] = False

    @property
    def needs_held_out(self) -> bool:
        """Whether it decides by accuracy, measured on images that are neither for calibration nor for evaluation."""
        return False

    @property
    def needs_training(self) -> bool:
        """Whether it trains, and so wants all images that neither evaluate nor are held out."""
        return False

    @property
    def to_int8(self) -> bool:
        """Whether what it leaves runs in int8 kernels, whose shapes passes before it may then choose."""
        return False

    def __post_init__(self) -> None:
        for info in self.options():
            object.__setattr__(self, info.name, _convert(self.name, info, getattr(self, info.name)))

    @abstractmethod
    def run(self, model: Model, ctx: Context) -> PassResult:
        """Change ``model`` (inside ``with model.edit()``) and say what was done."""

    @classmethod
    @functools.cache
    def options(cls) -> tuple[OptionInfo, ...]:
        """The options, in the order in which they are declared."""
        hints = typing.get_type_hints(cls)
        return tuple(
            OptionInfo(
                f.name,
                hints[f.name],
                f.default if f.default_factory is dataclasses.MISSING else f.default_factory(),
                f.metadata.get("help", ""),
                f.metadata.get("min"),
                f.metadata.get("max"),
                f.metadata.get("choices"),
            )
            for f in dataclasses.fields(cls)
        )

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Pass:
        """Construct from named options. Raises UsageError, with the nearest match, for an unknown one."""
        known = [info.name for info in cls.options()]
        for key in options:
            if key not in known:
                raise spec.unknown("option", key, known, f" of pass {cls.name!r}")
        for info in cls.options():
            if info.default is dataclasses.MISSING and info.name not in options:
                raise UsageError(
                    f"option {info.name!r} of pass {cls.name!r} must be given", f"{info.name}: {info.help}"
                )
        return cls(**options)

    @property
    def spec(self) -> str:
        """Canonical text: the name and the options that differ from their defaults."""
        changed = {i.name: getattr(self, i.name) for i in self.options() if getattr(self, i.name) != i.default}
        return spec.format_item(spec.Item(self.name, changed))

    @classmethod
    def summary(cls) -> str:
        """First sentence of the help text."""
        text = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
        written = text and not text.startswith(f"{cls.__name__}(")  # else it is the signature, put there by dataclass
        return text.partition(". ")[0].rstrip(".") + "." if written else ""


@dataclass(frozen=True)
class Pipeline:
    """Passes under one name, repeated in their order until none of them changes the model."""

    name: str
    passes: tuple[Pass, ...]

    @property
    def spec(self) -> str:
        return self.name


def _type_name(kind: Any) -> str:
    names = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(k) for k in typing.get_args(kind) if k is not type(None))
    if origin is tuple:
        return "a list [a,b,...]"
    if origin is spec.Table:
        return f"a table {{name=value,...}} whose values are {_type_name(typing.get_args(kind)[0])}"
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _convert(owner: str, info: OptionInfo, value: Any) -> Any:
    converted = _to_type(info.type, value)
    parts = converted if isinstance(converted, tuple) else (converted,)
    if isinstance(converted, spec.Table):
        parts = tuple(part for _, part in converted)
    if converted is _BAD or not all(_allowed(info, part) for part in parts):
        raise UsageError(
            f"option {info.name!r} of {owner!r} cannot be {spec.format_value(value)}: it is {info.allowed}",
            f"{info.name}: {info.help}",
        )
    return converted


def _allowed(info: OptionInfo, value: Any) -> bool:
    """Whether a value, or an element of a list, is among the choices and within the bounds."""
    if value is None:
        return True
    if info.choices and value not in info.choices:
        return False
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    low = info.min is not None and value < info.min
    high = info.max is not None and value > info.max
    return not (low or high or math.isnan(value))


_BAD = object()


def _to_type(kind: Any, value: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        for part in typing.get_args(kind):
            converted = _to_type(part, value)
            if converted is not _BAD:
                return converted
        return _BAD
    if kind is type(None):
        return None if value is None or value == "none" else _BAD
    if origin is spec.Table:
        if not isinstance(value, Mapping | spec.Table):
            return _BAD
        pairs = value.items() if isinstance(value, Mapping) else value
        table = {str(key): _to_type(typing.get_args(kind)[0], v) for key, v in pairs}
        return _BAD if any(v is _BAD for v in table.values()) else spec.Table.of(table)
    if origin is tuple:
        parts = typing.get_args(kind)
        items = value if isinstance(value, tuple | list) else (value,)
        if len(parts) == 2 and parts[1] is Ellipsis:
            parts = (parts[0],) * len(items)
        if len(parts) != len(items):
            return _BAD
        converted = tuple(_to_type(part, v) for part, v in zip(parts, items, strict=True))
        return _BAD if any(v is _BAD for v in converted) else converted
    if kind is bool:
        return value if isinstance(value, bool) else _BAD
    if kind is int:
        return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else _BAD
    if kind is float:
        try:
            return float(value) if isinstance(value, Real) and not isinstance(value, bool) else _BAD
        except OverflowError:
            return _BAD
    if kind is str:
        return value if isinstance(value, str) else _BAD if value is None else spec.format_value(value)
    return value
