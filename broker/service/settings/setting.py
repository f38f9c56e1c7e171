"""Settings: one table for each role, from which its command line and its configuration file follow.

A setting is a text, a number, a truth value or a list of these, and means the same on the command
line and in the file. All errors of both are found before any is reported.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from broker.service.settings.values import FLAG, ValueType


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a role.

    :ivar name: the option's name, and the key in the file
    :ivar value_type: what it may hold
    :ivar default: the value if nothing is set, as the file would have it
    :ivar help: what it is for, in a sentence or two
    :ivar repeatable: whether it holds a list; on the command line the option is then repeated
    """

    name: str
    value_type: ValueType
    default: Any
    help: str
    repeatable: bool = False

    @property
    def flag(self) -> bool:
        """Whether it is on or off, and takes no value on the command line."""
        return self.value_type is FLAG

    @property
    def opposite(self) -> str:
        """The option that undoes a flag which the file has set."""
        return self.name[3:] if self.name.startswith("no-") else f"no-{self.name}"


@dataclass(slots=True)
class Settings:
    """The settings of a role, from all sources.

    :ivar values: name to value; a list of values if the setting is repeatable
    :ivar origins: name to where it was set, for each setting that was set
    :ivar errors: what is wrong, one line for each
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def where(self, name: str) -> str:
        """Where a setting was set, or the option that sets it."""
        return self.origins.get(name, f"--{name}")


def combine(
    settings: Sequence[Setting], given: Mapping[str, Sequence[str] | bool], path: str | None = None
) -> Settings:
    """Combine the command line, the configuration file and the defaults; the first of them wins.

    :param given: the command line: the texts of each option in order, or the value of a flag
    :param path: the configuration file
    """
    result = Settings()
    in_file = _read(path, settings, result.errors) if path is not None else {}
    for setting in settings:
        name = setting.name
        result.values[name] = _default(setting)
        if name in in_file:
            result.origins[name] = f"{path}: {name}"
            _set(setting, in_file[name], result)
        if name in given:
            result.origins[name] = f"--{name}"
            value = given[name]
            whole = isinstance(value, bool) or setting.repeatable
            _set(setting, value if whole else value[-1], result)  # type: ignore[index]
    return result


def _default(setting: Setting) -> Any:
    if setting.repeatable:
        return [setting.value_type.parse(text) for text in setting.default]
    # Parsed like any other value, so that a default can be given as a user would write it.
    return setting.default if setting.flag else setting.value_type.parse(str(setting.default))


def _set(setting: Setting, value: Any, result: Settings) -> None:
    """Set a value that the file or the command line gives."""
    if setting.flag:
        result.values[setting.name] = value
        return
    parsed = []
    for item in value if setting.repeatable else [value]:
        try:
            parsed.append(setting.value_type.parse(str(item)))
        except ValueError as error:
            result.errors.append(f"{result.where(setting.name)}: {error}")
    if setting.repeatable:
        result.values[setting.name] = parsed
    elif parsed:
        result.values[setting.name] = parsed[0]


def _read(path: str, settings: Sequence[Setting], errors: list[str]) -> dict[str, Any]:
    """The values of a configuration file that have the right type; the others give errors."""
    try:
        with open(path, "rb") as file:
            in_file = tomllib.load(file)
    except OSError as error:
        errors.append(f"{path}: {error.strerror}")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        errors.append(f"{path}: not TOML: {error}")
        return {}
    known = {setting.name: setting for setting in settings}
    right = {}
    for name, value in in_file.items():
        setting = known.get(name)
        if setting is None:
            errors.append(f"{path}: {name}: there is no such setting")
        elif setting.repeatable and not isinstance(value, list):
            errors.append(f"{path}: {name}: must be a list")
        elif not all(_has_type(setting.value_type, item) for item in _each(value, setting)):
            noun = f"a list of which each is {setting.value_type.noun}"
            noun = noun if setting.repeatable else setting.value_type.noun
            errors.append(f"{path}: {name}: must be {noun}")
        else:
            right[name] = value
    return right


def _each(value: Any, setting: Setting) -> list[Any]:
    return list(value) if setting.repeatable else [value]


def _has_type(value_type: ValueType, value: object) -> bool:
    if isinstance(value, bool):  # a bool is an int in Python, and true is no number in TOML
        return bool in value_type.types
    return isinstance(value, value_type.types)
