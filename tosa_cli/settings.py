"""Settings, each declared once with its type, range and help. Imports no torch, and pydantic when it checks a value.

    @dataclass(frozen=True, kw_only=True)
    class WalkConfig(CommandSettings):
        epochs: Annotated[int, Setting("Passes over the data.", ge=1)] = 1

From the declaration come the check of a value and the sentence that refuses it, the option of a command with its help
(`tosa_cli.cli.options.with_settings`), and the key of a recipe. A class derived from another inherits its declarations,
and may name another default: `epochs: int = 3`.
"""

import dataclasses
import difflib
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

from tosa_cli.errors import ConfigError


@dataclass(frozen=True)
class Setting:
    """What is declared of a setting beside its type and default.

    Attributes:
        help: What it does, in a sentence or two.
        flag: Its short option, as `-b`.
        ge: Numbers are this or more.
        gt: Numbers are above this.
        le: Numbers are this or less.
        lt: Numbers are below this.
        multiple_of: Numbers are multiples of this.
        expected: What a value must be, in words, where type and range do not say it well.
        read: Makes the value of text or plain data; raises ValueError or ConfigError if that cannot be meant.
    """

    help: str
    flag: str = ""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    multiple_of: int | None = None
    expected: str = ""
    read: Callable[[Any], Any] | None = None

    @property
    def bounds(self) -> dict[str, float]:
        """The range by pydantic's names."""
        names = ("ge", "gt", "le", "lt", "multiple_of")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def in_words(self) -> str:
        """The range as `1 or more`, `from 0 to 1`, `above 0 and at most 1`."""
        if self.ge is not None and self.le is not None:
            return f"from {self.ge} to {self.le}"
        low = [f"{self.ge} or more"] if self.ge is not None else [f"above {self.gt}"] if self.gt is not None else []
        high = [f"at most {self.le}"] if self.le is not None else [f"below {self.lt}"] if self.lt is not None else []
        return " and ".join(low + high)

    def in_symbols(self) -> str:
        """The range as `x>=1`, `0<=x<1`; empty if there is none."""
        low = f"{self.ge}<=" if self.ge is not None else f"{self.gt}<" if self.gt is not None else ""
        high = f"<={self.le}" if self.le is not None else f"<{self.lt}" if self.lt is not None else ""
        if low and not high:
            return f"x>={self.ge}" if self.ge is not None else f"x>{self.gt}"
        return f"{low}x{high}" if high else ""


@dataclass(frozen=True)
class Declaration:
    """A setting as a class of settings has it.

    Attributes:
        name: Its name.
        kinds: The types that a value may have, None left out.
        optional: Whether it may be None.
        default: Its default; `dataclasses.MISSING` if it has none.
        setting: What else is declared.
    """

    name: str
    kinds: tuple[Any, ...]
    optional: bool
    default: Any
    setting: Setting

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values that it may have, where these are listed."""
        parts = [part for kind in self.kinds for part in (get_args(kind) if get_origin(kind) is tuple else (kind,))]
        parts = [part for part in parts if part is not ...]
        listed = all(get_origin(part) is Literal for part in parts)
        return tuple(value for part in parts for value in get_args(part)) if listed else ()

    @property
    def is_number(self) -> bool:
        """Whether it is a number and nothing else."""
        return set(self.kinds) <= {int, float}

    @property
    def is_list(self) -> bool:
        """Whether it is a list, kept as a tuple."""
        return all(get_origin(kind) is tuple for kind in self.kinds)

    @cached_property
    def _adapter(self) -> Any:
        """What checks values, strictly: no kind is taken for another, and no number is infinite or NaN."""
        from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter

        if self.setting.read is not None:
            return TypeAdapter(Annotated[Any, BeforeValidator(self.setting.read)])
        bounds: dict[str, Any] = self.setting.bounds
        kinds = [Annotated[kind, Field(**bounds)] if kind in (int, float) else kind for kind in self.kinds]
        kind: Any = Union[tuple(kinds + [None] * self.optional)]  # noqa: UP007
        return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))

    def check(self, value: Any, called: str, reads_text: bool) -> Any:
        """Check a value, and bring it to its type.

        Args:
            value: A value; a list stands for a tuple.
            called: What the setting is called in the error.
            reads_text: Take text that is a number for one, as YAML reads `1e-3` as text, 5.0 for 5, and text with
                commas for a list.

        Raises:
            ConfigError: If it is of another type or out of range.
        """
        from pydantic import ValidationError

        given = value
        if self.setting.read is None:
            if reads_text and not {int, float}.isdisjoint(self.kinds):
                value = _as_number(value)
            if reads_text and isinstance(value, str) and self.is_list:
                value = value.split(",")
            value = tuple(value) if isinstance(value, list) else value
        try:
            checked = self._adapter.validate_python(value)
            for text in checked if isinstance(checked, tuple) else (checked,):
                if isinstance(text, str) and b"\0" in text.encode():  # no name of a file has a zero
                    raise ValueError(text)
            return checked
        except ValidationError as error:
            raise self.error(called, given, error.errors()[0]) from None
        except (TypeError, OverflowError, ValueError):
            raise self.error(called, given, {"type": "", "loc": (), "input": given}) from None

    def error(self, called: str, given: Any, details: Mapping[str, Any]) -> ConfigError:
        """The error that refuses a value, by what pydantic says of it."""
        setting = self.setting
        if setting.expected:
            return ConfigError(f"{called} must be {setting.expected}, not {given!r}.")
        if self.choices:
            wrong = details["input"] if details["loc"] else given
            return ConfigError(f"{called} must be one of: {', '.join(map(str, self.choices))}; not {wrong!r}.")
        if details["type"].startswith(("greater", "less", "multiple")):
            return ConfigError(f"{called} must be {setting.in_words()}, not {given!r}.")
        names = {bool: "true or false", str: "a text", int: "a whole number", float: "a number"}
        return ConfigError(f"{called} must be {names[self.kinds[0]]}, not {given!r}.")


@cache
def _declarations(settings: Any) -> dict[str, Declaration]:
    """All settings of a class, in their order: types and defaults are those of the class itself."""
    kinds: dict[str, Any] = {}
    declared: dict[str, Setting] = {}
    for cls in reversed(settings.__mro__):
        for name, annotation in inspect.get_annotations(cls, eval_str=True).items():
            if get_origin(annotation) is Annotated:
                kinds[name], declared[name] = get_args(annotation)
            else:
                kinds[name] = annotation
    found = {}
    for field in dataclasses.fields(settings):
        kind = kinds[field.name]
        parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
        values = tuple(part for part in parts if part is not types.NoneType)
        found[field.name] = Declaration(
            field.name, values, types.NoneType in parts, settings.default_of(field.name), declared[field.name]
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings: a value of another type, or out of its range, is refused when an object is made.

    Raises:
        ConfigError: Naming the setting, what it must be, and the value.
    """

    noun: ClassVar[str] = "setting"
    goes_with: ClassVar[str] = ""
    reads_text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in self.declarations():
            self._check(name)

    def _check(self, name: str) -> None:
        """Check one setting, and bring it to its type."""
        called = option_name(name) if self.reads_text else name
        value = self.declarations()[name].check(getattr(self, name), called, self.reads_text)
        object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def named(self) -> dict[str, Any]:
        """The settings that are not at their default."""
        return {name: value for name, value in self.to_dict().items() if getattr(self, name) != self.default_of(name)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read settings from JSON or YAML values, strictly.

        Raises:
            ConfigError: If a key is unknown or missing, or a value is wrong.
        """
        check_keys(values, cls.field_names(), cls.noun)
        for name, declared in cls.declarations().items():
            if declared.default is dataclasses.MISSING and name not in values:
                raise ConfigError(f"The setting {name!r} is missing: it must be {declared.setting.expected}.")
        return cls(**values)

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Names of all settings."""
        return tuple(field.name for field in dataclasses.fields(cls))

    @classmethod
    def declarations(cls) -> dict[str, Declaration]:
        """All settings by name, in their order."""
        key: Any = cls
        return _declarations(key)

    @classmethod
    def default_of(cls, name: str) -> Any:
        """The default of a setting; `dataclasses.MISSING` if it has none."""
        return cls.__dataclass_fields__[name].default

    @classmethod
    def help_of(cls, name: str) -> str:
        """What a setting does, in a sentence or two."""
        return cls.declarations()[name].setting.help


@dataclass(frozen=True, kw_only=True)
class CommandSettings(Settings):
    """Base of settings that people type, as options or into recipes.

    A number may be text, as YAML reads `1e-3`, and a list text with commas; errors call a setting by its option.
    """

    reads_text: ClassVar[bool] = True


def check_keys(values: Mapping[str, Any], valid: Iterable[str], what: str) -> None:
    """Check that no key is unknown.

    Raises:
        ConfigError: Naming the first unknown key, the nearest valid one and all valid ones.
    """
    valid = sorted(valid)
    for key in values:
        if key not in valid:
            near = difflib.get_close_matches(str(key), valid, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"Unknown {what} {key!r}.{hint} Valid: {', '.join(valid)}.")


def option_name(setting: str) -> str:
    """What a setting is called on the command line."""
    return f"--{setting.replace('_', '-')}"


def shown(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _as_number(value: Any) -> Any:
    """The number that a text says; a whole number is an int."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    return int(value) if isinstance(value, float) and value.is_integer() else value
