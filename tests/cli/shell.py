"""The ``broker`` command as a person uses it: a line typed, what it prints, and its exit status."""

from __future__ import annotations

import io
import shlex
from typing import NamedTuple

import pytest

from broker.cli.main import main


class Done(NamedTuple):
    """What became of a command."""

    status: int | str | None
    out: str
    err: str


class Shell:
    """Runs commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, line: str) -> Done:
        """Run a command."""
        try:
            status: int | str | None = main(shlex.split(line))
        except SystemExit as done:
            status = done.code
        return Done(status, *self._capsys.readouterr())


class Tty(io.StringIO):
    """A standard stream that is a terminal."""

    def isatty(self) -> bool:
        return True
