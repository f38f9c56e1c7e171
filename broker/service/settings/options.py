"""A role's options for ``twistd``, made from its table of settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final

from twisted.python import usage

import broker
from broker.service.settings.setting import Setting, Settings, combine

#: twistd's default, which all roles in one folder would share.
_TWISTD_PIDFILE: Final = "twistd.pid"


class RoleOptions(usage.Options):
    """The options of a role, from its command line and its configuration file.

    Errors end the process with status 1, and each is a line on standard error. A value is read as
    ``options["status-timeout"]``.

    :cvar role: the role's name as twistd knows it
    :cvar settings: its settings
    """

    role: ClassVar[str]
    settings: ClassVar[tuple[Setting, ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for setting in cls.settings:
            _add_option(cls, setting)

    def __init__(self) -> None:
        usage.Options.__init__(self)
        #: What the command line sets.
        self.given: dict[str, Any] = {}
        self._path: str | None = None

    def opt_config(self, path: str) -> None:
        """Read settings from this TOML file; the command line wins."""
        self._path = path

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"broker {broker.__version__}")
        raise SystemExit(0)

    def parseOptions(self, options: Any = None) -> None:
        """Parse; an error is reported in one line, without twistd's whole help text."""
        try:
            usage.Options.parseOptions(self, options)
        except usage.UsageError as error:
            raise SystemExit(f"{self.role}: {error}") from None

    def postOptions(self) -> None:
        """Combine all sources, and report everything that is wrong with them."""
        settings = combine(self.settings, self.given, self._path)
        self.update(settings.values)
        errors = [*settings.errors, *self.problems(settings)]
        pidfile_error = self._set_pidfile() if not errors else None
        if pidfile_error is not None:
            errors.append(pidfile_error)
        if errors:
            raise SystemExit("\n".join(f"{self.role}: {error}" for error in errors))

    def problems(self, settings: Settings) -> Iterator[str]:
        """What is wrong with the settings in combination, one line for each."""
        yield from ()

    @property
    def logs_here(self) -> bool:
        """Whether the log goes to standard output."""
        parent: dict[str, Any] = self.parent or {}
        return bool(parent.get("nodaemon")) and not (
            parent.get("syslog") or parent.get("logger") or parent.get("logfile") not in {None, "-"}
        )

    def pidfile(self) -> str:
        """The name of the pid file: each role in a folder has its own."""
        return f"{self.role}.pid"

    def _set_pidfile(self) -> str | None:
        parent = self.parent
        if parent is None or "pidfile" not in parent:  # not under twistd
            return None
        if parent["pidfile"] == _TWISTD_PIDFILE:
            parent["pidfile"] = self.pidfile()
        path = parent["pidfile"]
        folder = os.path.dirname(os.path.abspath(path))
        if path and not os.access(folder, os.W_OK):
            return f"{path}: no file can be written in {folder}: name another with --pidfile"
        # A process that is killed before it has written its pid leaves an empty file, and twistd
        # would refuse to start because of it.
        if path and os.path.isfile(path) and os.path.getsize(path) == 0:
            os.remove(path)
        return None

    def getSynopsis(self) -> str:
        return f"Usage: twistd [options] {self.role} [options]"


def _add_option(cls: type[RoleOptions], setting: Setting) -> None:
    """Give the class a method for each option, as ``usage.Options`` expects it."""
    handlers = {setting.name: _flag(setting, True) if setting.flag else _parameter(setting)}
    if setting.flag:
        handlers[setting.opposite] = _flag(setting, False)
    for name, handler in handlers.items():
        setattr(cls, "opt_" + name.replace("-", "_"), handler)


def _parameter(setting: Setting) -> Callable[[RoleOptions, str], None]:
    def opt(self: RoleOptions, text: str) -> None:
        self.given.setdefault(setting.name, []).append(text)

    repeatable = "; may be repeated" if setting.repeatable else ""
    default = ", ".join(setting.default) if setting.repeatable else setting.default
    shown = f" [default: {default}{repeatable}]" if default != "" else f" [{repeatable[2:]}]"
    opt.__doc__ = setting.help + (shown if shown != " []" else "")
    return opt


def _flag(setting: Setting, value: bool) -> Callable[[RoleOptions], None]:
    def opt(self: RoleOptions) -> None:
        self.given[setting.name] = value

    opt.__doc__ = setting.help if value else f"Undo --{setting.name} if the file sets it."
    return opt
