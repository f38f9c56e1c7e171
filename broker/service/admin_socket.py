"""The operator's socket: a request is a line, its answer one line or several, each a JSON object.

Only the socket's owner and root can open it: these are the operator.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

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
from broker.mediator.admin import AdminApi, Row
from broker.messages.message import printable
from broker.net.timers import DeadlineQueue
from broker.service.admin_requests import BadAdminRequest, read_request
from broker.service.errors import CannotStart
from broker.service.ports import reason
from broker.service.settings.setting import Setting
from broker.service.settings.values import ValueType
from broker.tables.accounts import AccountRefused
from broker.tables.groups import GroupRefused

#: The most bytes in the path of a Unix socket: 108 with the zero at its end (unix(7)).
PATH_BYTES: Final = 107
#: The most connections at a time.
CONNECTIONS_MOST: Final = 8
#: The most bytes in one request.
LINE_BYTES: Final = 1024 * 1024
#: Seconds in which a request must come, or a part of the answer must be read.
IDLE_SECONDS: Final = 300.0
#: Bytes of an answer to collect before they are written.
BATCH_BYTES: Final = 16 * 1024
#: The value of SO_PEERCRED: process, user, group (struct ucred, unix(7)).
_CREDENTIALS: Final = struct.Struct("3i")


def parse_admin(text: str) -> str | None:
    """Where the operator's socket is: a path for ``unix:PATH``, ``None`` for ``none``."""
    if text == "none":
        return None
    scheme, _, path = text.partition(":")
    if scheme != "unix" or not path or "\0" in path:
        raise ValueError(f"{text!r} is not offered: only unix:PATH or none")
    path = os.path.abspath(path)
    if len(os.fsencode(path)) > PATH_BYTES:
        raise ValueError(
            f"{path!r} is too long: the path of a socket has at most {PATH_BYTES} bytes:"
            " use another, such as unix:/run/broker/admin"
        )
    return path


ADMIN: Final = Setting(
    "admin",
    ValueType(parse_admin),
    "unix:broker.admin",
    "Socket for the operator's commands: unix:PATH, which only its owner can open, or none.",
)


REFUSED_USER: Final = "User {user} was refused at the operator's socket"
SERVED: Final = "Operator (user {user}): {request}: {outcome}"
LISTENING: Final = "The operator's socket is {path}"
NOT_REMOVED: Final = "The operator's socket could not be removed: {why}"


class ReaderGone(Exception):
    """The client has closed the connection, and does not read the rest of the answer."""


def peer_user(transport: Any) -> int:
    """The user at the other end of a Unix socket, from the kernel."""
    credentials = transport.getHandle().getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
    )
    _, user, _ = _CREDENTIALS.unpack(credentials)
    return int(user)


@implementer(IPushProducer)
class AdminAnswer:
    """The lines of one answer, made only as fast as they are read, and a batch in each turn."""

    def __init__(self, connection: AdminConnection) -> None:
        self._connection = connection
        self._transport = connection.transport
        self._lines = bytearray()
        self._full = False
        self._gone = False
        self._waiting: Deferred[None] | None = None
        self._transport.registerProducer(self, True)

    async def tell(self, row: Row) -> None:
        """Add a row; done when there is room for the next one.

        :raises ReaderGone: the connection is closed
        """
        self._lines += _line(row)
        if len(self._lines) < BATCH_BYTES:
            return
        self._transport.write(bytes(self._lines))
        self._lines.clear()
        await deferLater(self._connection.admin.clock, 0)  # so that terminals get their turn
        if self._full and not self._gone:
            self._connection.admin.idle.add(self._connection)
            self._waiting = Deferred()
            await self._waiting
            self._connection.admin.idle.discard(self._connection)
        if self._gone:
            raise ReaderGone

    def end(self, row: Row) -> None:
        """Write the last line."""
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
    """A connection of the operator. It answers one request after another.

    :ivar admin: the socket that it belongs to
    """

    delimiter = b"\n"
    MAX_LENGTH = LINE_BYTES
    log = Logger()
    transport: Any
    # These have no annotations in Twisted.
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
            self.log.warn(REFUSED_USER, user=self._user)
            self._end("refused", "only the user that the broker runs as may use this socket")
        elif len(self.admin.connections) > CONNECTIONS_MOST:
            self._end("busy", "too many commands are running: try again")
        else:
            self.admin.idle.add(self)

    def lineReceived(self, line: bytes) -> None:
        self.admin.idle.discard(self)
        self.pauseProducing()  # read the next request when this one is answered
        serving = Deferred.fromCoroutine(self._serve(line))
        serving.addErrback(partial(self.log.failure, "A request of the operator was not answered"))

    def lineLengthExceeded(self, line: bytes) -> None:
        self.admin.idle.discard(self)
        self._end("bad", f"a request has at most {LINE_BYTES} bytes")

    def readConnectionLost(self) -> None:
        self.transport.loseConnection()  # when all requests are answered

    def writeConnectionLost(self) -> None:
        """Nothing depends on it."""

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._gone = True
        self.admin.connections.discard(self)
        self.admin.idle.discard(self)

    def abort(self) -> None:
        """Close at once, even if some of the answer is not read."""
        self.transport.abortConnection()

    # Serving.

    async def _serve(self, line: bytes) -> None:
        answer = AdminAnswer(self)
        described = "a request"
        try:
            request = read_request(line)
            described = request.described()
            end = await request.run(self.admin.operator, answer.tell)
            last, outcome = {"done": True, **end}, "done"
        except ReaderGone:
            self._log(described, "the reader of the answer has gone")
            return
        except Exception as error:
            kind, why = self._explained(error)
            last, outcome = {"error": why, "kind": kind}, f"{kind}: {why}"
        self._log(described, outcome)
        answer.end(last)
        if not self._gone:
            self.admin.idle.add(self)
            self.resumeProducing()

    def _explained(self, error: Exception) -> tuple[str, str]:
        """What went wrong: its kind, and a text for the operator."""
        if isinstance(error, BadAdminRequest):
            return "bad", str(error)
        if isinstance(error, AccountRefused | GroupRefused):
            return "refused", printable(str(error))
        if isinstance(error, StoreFailed):
            return "busy", str(error)
        self.log.failure("A request of the operator failed", Failure(error))
        return "failed", "the request failed: the broker's log says why"

    def _log(self, request: str, outcome: str) -> None:
        self.log.info(SERVED, user=self._user, request=request, outcome=outcome)

    def _end(self, kind: str, why: str) -> None:
        self.transport.write(_line({"error": why, "kind": kind}))
        self.transport.loseConnection()


class AdminSocket(Factory):
    """The operator's socket: opened with the ports of a role, and removed with them.

    :ivar clock: the clock of its deadlines
    :ivar operator: does what is asked
    :ivar connections: the open connections
    :ivar idle: the connections that must send or read something before a deadline
    :ivar user_of: gives the user at the other end of a transport
    """

    noisy = False
    log = Logger()
    operator: AdminApi

    def __init__(
        self, reactor: Any, path: str | None, *, user_of: Callable[[Any], int] = peer_user
    ) -> None:
        """
        :param path: where to make it; ``None`` for no socket
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
        """Make the socket.

        :raises CannotStart: that failed, or another broker has it open
        """
        self.operator = operator
        if self._path is None:
            return
        _remove_stale_socket(self._path)
        before = os.umask(0o177)  # so that no other user can ever open it
        try:
            self._port = self.clock.listenUNIX(self._path, self, CONNECTIONS_MOST, 0o600)
        except CannotListenError as error:
            raise CannotStart(f"cannot listen on unix:{self._path}: {reason(error)}") from None
        finally:
            os.umask(before)
        self.log.info(LISTENING, path=printable(self._path))

    def buildProtocol(self, addr: object) -> AdminConnection:
        return AdminConnection(self)

    def close(self) -> Deferred[Any]:
        """Close the socket and every connection; fires when that is done.

        A request that has begun is still completed.
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
        """Remove the socket at once: its role does not start, and maybe no reactor ever runs."""
        if self._port is not None and self._path is not None:
            with suppress(OSError):
                os.unlink(self._path)
        self.close()

    def _not_removed(self, failure: Failure) -> None:
        failure.trap(OSError)
        if not failure.check(FileNotFoundError):
            self.log.warn(NOT_REMOVED, why=failure.getErrorMessage())


def _remove_stale_socket(path: str) -> None:
    """Remove the socket that a crashed broker has left.

    Two brokers that start at the same moment can't both get here: each opens its store first.

    :raises CannotStart: a running broker has it open, or it is no socket
    """
    try:
        found = os.lstat(path)
    except OSError:  # there is none; another error is reported when the socket is made
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise CannotStart(f"{path}: exists, and is no socket: name another with --admin")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        answered = probe.connect_ex(path)
    if answered == errno.ENOENT:
        return
    if answered != errno.ECONNREFUSED:
        raise CannotStart(
            f"{path}: another broker has it open: stop that one, or name another with --admin"
        )
    try:
        os.unlink(path)
    except OSError as error:
        raise CannotStart(f"{path}: {error.strerror}") from None


def _line(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n"
