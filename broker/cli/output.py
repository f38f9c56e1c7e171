"""What the commands print: exit statuses, errors, rows for people and programs, a progress bar."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from typing import Any, Final, TextIO

from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IReactorTime

from broker.ca.names import AuthorityError
from broker.files import InvalidFile
from broker.interfaces import StoreFailed
from broker.messages.errors import Refused
from broker.messages.message import printable
from broker.net.tls.errors import TlsFailed
from broker.service.settings.credentials import NoPasswordGiven
from broker.tables.consent_lists import NoConsent
from broker.terminal.apps.receipt import TransferFailed
from broker.terminal.errors import CallFailed

DONE: Final = 0
FAILED: Final = 1
UNREACHABLE: Final = 3
REFUSED: Final = 4

#: What a shell adds to the number of the signal that ended a program.
SIGNAL_BASE: Final = 128


class CommandFailed(Exception):
    """A command can't be done; its arguments are the lines that say why.

    :ivar status: the exit status
    """

    status = FAILED


class Unreachable(CommandFailed):
    """The server can't be reached, or has ended the connection."""

    status = UNREACHABLE


class NotAllowed(CommandFailed):
    """The server refuses the command."""

    status = REFUSED


class Interrupted(Exception):
    """A signal has ended the command.

    :ivar status: the exit status
    """

    def __init__(self, received: int) -> None:
        super().__init__(received)
        self.status = SIGNAL_BASE + received


#: Errors whose text is all that a person needs.
_EXPLAINED: Final = (
    AuthorityError,
    CallFailed,
    InvalidFile,
    NoConsent,
    StoreFailed,
    TransferFailed,
)


def explain(error: BaseException) -> int:
    """Say on standard error what went wrong.

    :return: the exit status
    """
    if isinstance(error, CommandFailed):
        return complain(*error.args, status=error.status)
    if isinstance(error, Refused):
        cause = f" ({error.cause})" if error.cause else ""
        return complain(f"{error.statement}{cause}", status=REFUSED)
    if isinstance(error, TlsFailed):
        return complain(f"no TLS connection to the mediator: {error}", status=UNREACHABLE)
    if isinstance(error, _EXPLAINED):
        return complain(str(error))
    if isinstance(error, ConnectionClosed):
        return complain("the mediator has closed the connection", status=UNREACHABLE)
    if isinstance(error, Interrupted | KeyboardInterrupt | NoPasswordGiven):
        return getattr(error, "status", SIGNAL_BASE + signal.SIGINT)
    if isinstance(error, OSError):
        return _explain_system_error(error)
    traceback.print_exception(error)
    return FAILED


def _explain_system_error(error: OSError) -> int:
    if isinstance(error, BrokenPipeError):
        # The reader of our output, such as head, has enough of it. Python flushes standard output
        # once more when it ends, and that must not fail as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    name = f"{error.filename}: " if error.filename else ""
    return complain(f"{name}{error.strerror or error}")


def complain(*lines: str, status: int = FAILED) -> int:
    """Print lines on standard error, with nothing in them that controls a screen (I19).

    :return: the status
    """
    for line in lines:
        print(f"broker: {printable(line)}", file=sys.stderr, flush=True)
    return status


def print_json(row: dict[str, Any]) -> None:
    """Print an object on a line, in ASCII, so that nothing in it controls a screen."""
    print(json.dumps(row))


def print_columns(*columns: object) -> None:
    """Print columns separated by tabs; a dash stands for an empty one."""
    print("\t".join(printable(str(column)) or "-" for column in columns))


def count(number: object, noun: str) -> str:
    """A number of things: ``1 list``, ``2 lists``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


_UNITS: Final = (("days", 86400), ("h", 3600), ("min", 60), ("s", 1))


def limits_in_words(listed: str) -> str:
    """An entry of a list for a person: ``Ia (59 min left, 1 call left)``."""
    name, *limits = listed.split(";")
    words = []
    for limit in limits:
        kind, _, text = limit.partition("=")
        left = int(text)
        if kind == "uses":
            words.append(f"{count(left, 'call')} left")
        else:
            unit, size = next(
                (unit, size) for unit, size in _UNITS if left >= 2 * size or size == 1
            )
            words.append(f"{left // size} {unit} left")
    return f"{name} ({', '.join(words)})" if words else name


class Progress:
    """A bar that grows, on a terminal; nothing at all elsewhere."""

    WIDTH: Final = 30
    #: Seconds between two drawings: more often can't be seen.
    INTERVAL: Final = 0.1

    def __init__(self, stream: TextIO, total: int, clock: IReactorTime) -> None:
        """
        :param total: bytes to send
        """
        self._stream = stream
        self._total = total
        self._clock = clock
        self._shown = stream.isatty() and total > 0
        self._drawn = ""
        self._next = 0.0

    def at(self, octets: int) -> None:
        """This number of bytes is sent."""
        now = self._clock.seconds()
        if not self._shown or (now < self._next and octets < self._total):
            return
        self._next = now + self.INTERVAL
        part = min(1.0, octets / self._total)
        bar = "#" * int(part * self.WIDTH)
        self._drawn = f"[{bar:<{self.WIDTH}}] {part:4.0%} of {self._total / 1e6:.1f} MB"
        self._stream.write(f"\r{self._drawn}")
        self._stream.flush()

    def end(self) -> None:
        """The transfer has ended: leave the bar's line."""
        if self._drawn:
            self._stream.write("\n")
            self._stream.flush()
            self._drawn = ""
