"""A role's options for ``twistd``, made of its table of settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final

from twisted.python import usage

import broker
from broker.service.settings.values import Setting, Settings, settle

#: twistd's own default, which all roles of one folder would share.
_TWISTD_PIDFILE: Final = "twistd.pid"


class RoleOptions(usage.Options):
    """What a role is told by its command line and its configuration file.

    Every error ends the process with status 1 and a line on standard error for each. Values are
    read as ``options["status-timeout"]``.

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
        #: What the command line says.
        self.given: dict[str, Any] = {}
        self._path: str | None = None

    def opt_config(self, path: str) -> None:
        """Take settings from this TOML file; the command line wins."""
        self._path = path

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"broker {broker.__version__}")
        raise SystemExit(0)

    def parseOptions(self, options: Any = None) -> None:
        """Parse; what is wrong is told in a line, not with all of twistd's help."""
        try:
            usage.Options.parseOptions(self, options)
        except usage.UsageError as error:
            raise SystemExit(f"{self.role}: {error}") from None

    def postOptions(self) -> None:
        """Put all sources together, and say everything that is wrong with them."""
        settings = settle(self.settings, self.given, self._path)
        self.update(settings.values)
        errors = [*settings.errors, *self.problems(settings)]
        pidfile_error = self._set_pidfile() if not errors else None
        if pidfile_error is not None:
            errors.append(pidfile_error)
        if errors:
            raise SystemExit("\n".join(f"{self.role}: {error}" for error in errors))

    def problems(self, settings: Settings) -> Iterator[str]:
        """What is wrong with the settings taken together, a line each."""
        yield from ()

    @property
    def logs_here(self) -> bool:
        """Whether the log goes to where standard output does."""
        parent: dict[str, Any] = self.parent or {}
        return bool(parent.get("nodaemon")) and not (
            parent.get("syslog") or parent.get("logger") or parent.get("logfile") not in {None, "-"}
        )

    def pidfile(self) -> str:
        """The name of the file for the process's number: each role of a folder has its own."""
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
        # Who is killed before it has written its number leaves an empty file, over which twistd
        # would refuse to start.
        if path and os.path.isfile(path) and os.path.getsize(path) == 0:
            os.remove(path)
        return None

    def getSynopsis(self) -> str:
        return f"Usage: twistd [options] {self.role} [options]"


def _add_option(cls: type[RoleOptions], setting: Setting) -> None:
    """Give the class what ``usage.Options`` looks for: a method for each option."""
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

    opt.__doc__ = setting.help if value else f"Undo --{setting.name}, which the file may have set."
    return opt
