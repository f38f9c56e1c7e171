"""The operator's socket: one request a line, answered in lines, each an object in JSON.

Only its owner and root can open it, and both are the operator. docs/operations.md describes what
goes over it.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IListeningPort,
    IPushProducer,
)
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.interfaces import StoreFailed
from broker.mediator.admin import AdminApi, Row, Tell
from broker.messages.grammar import entry, identifier
from broker.messages.message import printable
from broker.net.timers import DeadlineQueue
from broker.service.ports import reason
from broker.service.process import CannotStart
from broker.service.settings.values import Kind, Setting
from broker.tables.accounts import AccountRefused
from broker.tables.groups import GroupRefused

#: Bytes that the path of a Unix socket may have: 108, with the zero at its end (unix(7)).
PATH_BYTES: Final = 107
#: Connections at a time.
CONNECTIONS_MOST: Final = 8
#: Bytes of one request.
LINE_BYTES: Final = 1024 * 1024
#: Seconds in which a request must come, or some of the answer be read.
IDLE_SECONDS: Final = 300.0
#: Bytes of an answer that are written at a time.
BATCH_BYTES: Final = 16 * 1024
#: Names that one line of the log holds at the most.
NAMED_MOST: Final = 10
#: How far ``since`` goes: the year 9999, in seconds since 1970.
_SECONDS_MOST: Final = 253_402_300_799

#: What SO_PEERCRED gives: process, user, group (struct ucred, unix(7)).
_CREDENTIALS: Final = struct.Struct("3i")


def parse_admin(text: str) -> str | None:
    """Where the operator's socket is: a path for ``unix:PATH``, nothing for ``none``."""
    if text == "none":
        return None
    scheme, _, path = text.partition(":")
    if scheme != "unix" or not path or "\0" in path:
        raise ValueError(f"{text!r} is not offered: only unix:PATH or none")
    path = os.path.abspath(path)
    if len(os.fsencode(path)) > PATH_BYTES:
        raise ValueError(
            f"{path!r} is too long for the path of a socket, which has at most {PATH_BYTES} bytes:"
            " name another, such as unix:/run/broker/admin"
        )
    return path


ADMIN: Final = Setting(
    "admin",
    Kind(parse_admin),
    "unix:broker.admin",
    "The socket for the operator's commands: unix:PATH, which its owner alone can open; or none.",
)


# What can be asked.


class Bad(ValueError):
    """A line that is no request; the text says why."""


class Gone(Exception):
    """Who asked is gone, and reads no more of the answer."""


#: Makes the value of what stands in a request, or raises ``TypeError`` or ``ValueError`` with a
#: cause.
_Rule = Callable[[object], Any]


def _text(value: object, rule: Callable[[str], str] = str) -> str:
    if not isinstance(value, str):
        raise TypeError("must be a text")
    return rule(value)


def _group(value: object) -> str:
    name = _text(value, entry)
    if name[0] != "@":
        raise ValueError("a group's name begins with @")
    return name


def _whole(least: int, most: int) -> _Rule:
    def rule(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return value

    return rule


def _members(value: object) -> list[str]:
    if not isinstance(value, list):
        raise TypeError("must be a list")
    return [_text(member, identifier) for member in value]


_IDENTIFIER: Final[_Rule] = partial(_text, rule=identifier)


class Act(NamedTuple):
    """Something that can be asked.

    :ivar run: does it, and gives the end of the answer
    :ivar needed: what the request must hold beside ``do``
    :ivar optional: what it may hold
    """

    run: Callable[[AdminApi, dict[str, Any], Tell], Awaitable[Row]]
    needed: Mapping[str, _Rule]
    optional: Mapping[str, _Rule] = {}


_SECRET: Final[dict[str, _Rule]] = {"identifier": _IDENTIFIER, "password": _text}
_NAMED: Final[dict[str, _Rule]] = {"identifier": _IDENTIFIER, "name": _IDENTIFIER}
_GROUPED: Final[dict[str, _Rule]] = {"group": _group, "members": _members}

ACTS: Final[Mapping[str, Act]] = {
    "account add": Act(lambda who, how, _: who.add_account(**how), _SECRET),
    "account reset": Act(lambda who, how, _: who.reset_account(**how), _SECRET),
    "account remove": Act(
        lambda who, how, _: who.remove_account(**how), {"identifier": _IDENTIFIER}
    ),
    "account list": Act(lambda who, how, tell: who.list_accounts(tell), {}),
    "account name add": Act(lambda who, how, _: who.add_name(**how), _NAMED),
    "account name remove": Act(lambda who, how, _: who.remove_name(**how), _NAMED),
    "group create": Act(lambda who, how, _: who.create_group(**how), _GROUPED),
    "group add": Act(lambda who, how, _: who.add_members(**how), _GROUPED),
    "group remove": Act(lambda who, how, _: who.remove_members(**how), _GROUPED),
    "group delete": Act(lambda who, how, _: who.delete_group(**how), {"group": _group}),
    "group list": Act(lambda who, how, tell: who.list_groups(tell), {}),
    "group members": Act(
        lambda who, how, tell: who.list_members(tell=tell, **how), {"group": _group}
    ),
    "permit show": Act(
        lambda who, how, tell: who.show_permits(tell=tell, **how), {"identifier": _IDENTIFIER}
    ),
    "who knows": Act(
        lambda who, how, tell: who.who_knows(tell=tell, **how),
        {"identifier": _IDENTIFIER},
        {"since": _whole(0, _SECONDS_MOST), "most": _whole(1, 2**53)},
    ),
}


class Request(NamedTuple):
    """What was asked, looked at and found in order.

    :ivar what: what is to be done
    :ivar how: with whom; in canonical form
    """

    what: str
    how: dict[str, Any]

    def described(self) -> str:
        """What is asked, for the log: on one line, and without a password (I18, I19)."""
        words = [self.what]
        for name, value in self.how.items():
            if name == "password":
                continue
            values = value if isinstance(value, list) else [value]
            words += [printable(str(one)) for one in values[:NAMED_MOST]]
            if len(values) > NAMED_MOST:
                words.append(f"and {len(values) - NAMED_MOST} more")
        return " ".join(words)


def read_request(line: bytes) -> Request:
    """Read a line.

    :raises Bad: it is no request
    """
    try:
        asked = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        raise Bad("the request is no JSON") from None
    if not isinstance(asked, dict):
        raise Bad("the request is no object")
    what = asked.pop("do", None)
    act = ACTS.get(what) if isinstance(what, str) else None
    if act is None:
        raise Bad(f"{str(what)[:80]!r} is nothing that this broker does")
    rules = {**act.needed, **act.optional}
    unknown = [name for name in asked if name not in rules]
    missing = [name for name in act.needed if name not in asked]
    if unknown:
        raise Bad(f"{what}: {unknown[0][:80]!r} has no place there")
    if missing:
        raise Bad(f"{what}: {missing[0]!r} is missing")
    how = {}
    for name, value in asked.items():
        try:
            how[name] = rules[name](value)
        except (TypeError, ValueError) as error:
            raise Bad(f"{name}: {error}") from None
    return Request(what, how)


# Who asks.


def peer_user(transport: Any) -> int:
    """The user on the other side of a Unix socket, as the kernel knows it."""
    found = transport.getHandle().getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
    )
    _, user, _ = _CREDENTIALS.unpack(found)
    return int(user)


@implementer(IPushProducer)
class Answer:
    """The lines of one answer, made no faster than they are read, and a few in a turn."""

    def __init__(self, connection: AdminConnection) -> None:
        self._connection = connection
        self._transport = connection.transport
        self._lines = bytearray()
        self._full = False
        self._gone = False
        self._waiting: Deferred[None] | None = None
        self._transport.registerProducer(self, True)

    async def tell(self, row: Row) -> None:
        """Add a row; done when there is room for the next.

        :raises Gone: nobody reads any more
        """
        self._lines += _line(row)
        if len(self._lines) < BATCH_BYTES:
            return
        self._transport.write(bytes(self._lines))
        self._lines.clear()
        await deferLater(self._connection.admin.clock, 0)  # terminals have their turn
        if self._full and not self._gone:
            self._connection.admin.idle.add(self._connection)
            self._waiting = Deferred()
            await self._waiting
            self._connection.admin.idle.discard(self._connection)
        if self._gone:
            raise Gone

    def end(self, row: Row) -> None:
        """The last line."""
        self._transport.write(bytes(self._lines) + _line(row))
        self._transport.unregisterProducer()

    # From the transport.

    def pauseProducing(self) -> None:
        self._full = True

    def resumeProducing(self) -> None:
        self._full = False
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    def stopProducing(self) -> None:
        self._gone = True
        self.resumeProducing()


@implementer(IHalfCloseableProtocol)
class AdminConnection(LineReceiver):
    """One connection of the operator's: a request at a time, each answered to its end.

    :ivar admin: the socket that it came by
    """

    delimiter = b"\n"
    MAX_LENGTH = LINE_BYTES
    log = Logger()
    transport: Any
    # Without annotations in Twisted.
    pauseProducing: Callable[[], None]
    resumeProducing: Callable[[], None]

    def __init__(self, admin: AdminSocket) -> None:
        self.admin = admin
        self._user = -1
        self._gone = False

    # From the transport.

    def connectionMade(self) -> None:
        self.admin.connections.add(self)
        self._user = self.admin.user_of(self.transport)
        if self._user not in {0, os.geteuid()}:
            self.log.warn("User {user} was refused at the operator's socket", user=self._user)
            self._end("refused", "this socket is for the user as whom the broker runs")
        elif len(self.admin.connections) > CONNECTIONS_MOST:
            self._end("busy", "too many commands are at work: try again")
        else:
            self.admin.idle.add(self)

    def lineReceived(self, line: bytes) -> None:
        self.admin.idle.discard(self)
        self.pauseProducing()  # the next request is read when this one is answered
        serving = Deferred.fromCoroutine(self._serve(line))
        serving.addErrback(partial(self.log.failure, "The operator was not answered"))

    def lineLengthExceeded(self, line: bytes) -> None:
        self.admin.idle.discard(self)
        self._end("bad", f"a request has at most {LINE_BYTES} bytes")

    def readConnectionLost(self) -> None:
        self.transport.loseConnection()  # once all that was asked is answered

    def writeConnectionLost(self) -> None:
        """Nothing depends on it."""

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._gone = True
        self.admin.connections.discard(self)
        self.admin.idle.discard(self)

    def abort(self) -> None:
        """Close, read or not."""
        self.transport.abortConnection()

    # Serving.

    async def _serve(self, line: bytes) -> None:
        answer = Answer(self)
        asked = "a request"
        try:
            request = read_request(line)
            asked = request.described()
            told = await ACTS[request.what].run(self.admin.operator, request.how, answer.tell)
            last, outcome = {"done": True, **told}, "done"
        except Gone:
            self._log(asked, "nobody reads the answer any more")
            return
        except Exception as error:
            kind, why = self._explained(error)
            last, outcome = {"error": why, "kind": kind}, f"{kind}: {why}"
        self._log(asked, outcome)
        answer.end(last)
        if not self._gone:
            self.admin.idle.add(self)
            self.resumeProducing()

    def _explained(self, error: Exception) -> tuple[str, str]:
        """What went wrong: its kind, and words for the operator."""
        if isinstance(error, Bad):
            return "bad", str(error)
        if isinstance(error, AccountRefused | GroupRefused):
            return "refused", printable(str(error))
        if isinstance(error, StoreFailed):
            return "busy", str(error)
        self.log.failure("The operator's request failed", Failure(error))
        return "failed", "that went wrong: the broker's log says how"

    def _log(self, asked: str, outcome: str) -> None:
        self.log.info(
            "Operator (user {user}): {asked}: {outcome}",
            user=self._user,
            asked=asked,
            outcome=outcome,
        )

    def _end(self, kind: str, why: str) -> None:
        self.transport.write(_line({"error": why, "kind": kind}))
        self.transport.loseConnection()


class AdminSocket(Factory):
    """The operator's socket: opened with the ports of a role, and removed with them.

    :ivar clock: what its deadlines go by
    :ivar operator: does what is asked
    :ivar connections: those that are open
    :ivar idle: those of which something is waited for
    :ivar user_of: who is on the other side of a transport
    """

    noisy = False
    log = Logger()
    operator: AdminApi

    def __init__(
        self, reactor: Any, path: str | None, *, user_of: Callable[[Any], int] = peer_user
    ) -> None:
        """
        :param path: where it is to be; ``None`` for no socket at all
        """
        self.clock = reactor
        self.user_of = user_of
        self.connections: set[AdminConnection] = set()
        self.idle: DeadlineQueue[AdminConnection] = DeadlineQueue(
            reactor, IDLE_SECONDS, AdminConnection.abort
        )
        self._path = path
        self._port: IListeningPort | None = None

    def open(self, operator: AdminApi) -> None:
        """Open it.

        :raises CannotStart: it can't be opened, or is a living broker's
        """
        self.operator = operator
        if self._path is None:
            return
        _make_way(self._path)
        before = os.umask(0o177)  # so that it is ours alone from the moment that it is there
        try:
            self._port = self.clock.listenUNIX(self._path, self, CONNECTIONS_MOST, 0o600)
        except CannotListenError as error:
            raise CannotStart(f"cannot listen on unix:{self._path}: {reason(error)}") from None
        finally:
            os.umask(before)
        self.log.info("The operator's socket is {path}", path=printable(self._path))

    def buildProtocol(self, addr: object) -> AdminConnection:
        return AdminConnection(self)

    def close(self) -> Deferred[Any]:
        """Close it, and every connection; fires when that is done.

        What was begun is brought to its end all the same.
        """
        self.idle.stop()
        for connection in list(self.connections):
            connection.abort()
        port, self._port = self._port, None
        closing = None if port is None else port.stopListening()
        if closing is None:
            return succeed(None)
        return closing.addErrback(self._not_removed)

    def abandon(self) -> None:
        """Remove it at once: its role doesn't start, and perhaps no reactor ever runs."""
        if self._port is not None and self._path is not None:
            with suppress(OSError):
                os.unlink(self._path)
        self.close()

    def _not_removed(self, failure: Failure) -> None:
        failure.trap(OSError)
        if not failure.check(FileNotFoundError):
            self.log.warn(
                "The operator's socket could not be removed: {why}", why=failure.getErrorMessage()
            )


def _make_way(path: str) -> None:
    """Remove the socket of a broker that is dead.

    Two that start at one moment are kept apart by their store, which is opened before.

    :raises CannotStart: it is a living one's, or is no socket
    """
    try:
        found = os.lstat(path)
    except OSError:  # nothing is in the way; what else is wrong is told when it is opened
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise CannotStart(f"{path}: is there, and is no socket: name another with --admin")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knocking:
        knocking.setblocking(False)
        answered = knocking.connect_ex(path)
    if answered == errno.ENOENT:
        return
    if answered != errno.ECONNREFUSED:
        raise CannotStart(
            f"{path}: another broker has it open: end that one, or name another with --admin"
        )
    try:
        os.unlink(path)
    except OSError as error:
        raise CannotStart(f"{path}: {error.strerror}") from None


def _line(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n"
