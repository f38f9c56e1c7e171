"""Who a load plays: callers, callees and others, each on a raw socket, in clear text or over TLS.

Nothing is believed: each reply is matched with its request, and what is not as the protocol says is
an error.
"""

from __future__ import annotations

import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from benchmarks.counting import Broken, Load, Tally
from benchmarks.echo import END, REPLY, REQUEST

ACCEPTED: Final = b"NOTIFY\r\nRequest Accepted.\r\n"  # fig. 5b
TO_CALLER: Final = b"NOTIFY\r\nCallee Address:"  # fig. 5d
TO_CALLEE: Final = b"NOTIFY\r\nCaller ID:"  # fig. 5e
STATUS: Final = b"QUERY\r\nSTATUS\r\n"  # fig. 17a
ACCEPTABLE: Final = b"NOTIFY\r\nSTATUS Acceptable.\r\nTransaction:"  # fig. 17b
#: What a server that is asked for more than it can do in time says of some.
TOO_LATE: Final = (b"NOTIFY\r\nService Unavailable.\r\n", b"NOTIFY\r\nCallee not Connected.\r\n")
REGISTERED: Final = b"NOTIFY\r\nRegistration Completed.\r\n"
TRANSACTION: Final = b"\r\nTransaction:"
#: Follows the identifier or the password of a login; the answer brings the next one.
TOKEN: Final = b"\r\nToken:"

#: Connections made before the server's answers to their registrations are awaited: fewer than fit
#: in the queue of a listening socket.
CONNECTING: Final = 32
#: Seconds after which a server that gives no sign is taken for dead.
PATIENCE: Final = 30.0
HOST: Final = "127.0.0.1"
#: The password of every account that is made for a load.
PASSWORD: Final = "known to everybody who reads this"


class Connection(Protocol):
    """One connection of the load."""

    socket: socket.socket

    def readable(self) -> None:
        """There is something to read."""


class Asking(Connection, Protocol):
    """A connection that asks."""

    def ask(self, count: int, now: float) -> None:
        """Begin so many requests."""

    def open(self) -> int:
        """How many are not answered."""


def send(connection: socket.socket, data: bytes) -> None:
    """Send a little, which always fits where the server reads."""
    if connection.send(data) != len(data):
        raise Broken("the server does not read")


def transaction_of(message: bytes) -> bytes:
    """The transaction of a message."""
    return value_of(message, TRANSACTION)


def value_of(message: bytes, name: bytes) -> bytes:
    """What follows a field's name; empty without that field."""
    start = message.find(name)
    if start < 0:
        return b""
    start += len(name)
    end = message.find(b"\r", start)
    return message[start:] if end < 0 else message[start:end]


class Talking:
    """One that splits what it receives into messages.

    :ivar socket: its connection
    """

    __slots__ = ("_rest", "_tally", "socket")

    def __init__(self, sock: socket.socket, tally: Tally) -> None:
        self.socket = sock
        self._tally = tally
        self._rest = b""

    def readable(self) -> None:
        """Take what is there; it may be a part of a record of TLS."""
        try:
            data = self.socket.recv(65536)
        except ssl.SSLWantReadError:
            return
        if not data:
            raise Broken("the server has closed a connection")
        self.received(data)

    def received(self, data: bytes) -> None:
        """Bytes arrived."""
        raise NotImplementedError

    def messages(self, data: bytes) -> list[bytes]:
        """What is whole, each without its blank line."""
        if self._rest:
            data = self._rest + data
        parts = data.split(END)
        self._rest = parts.pop()
        return parts


class EchoCaller(Talking):
    """Asks the bare echo; its replies come in order."""

    __slots__ = ("_begun",)

    def __init__(self, sock: socket.socket, tally: Tally) -> None:
        super().__init__(sock, tally)
        self._begun: deque[float] = deque()

    def ask(self, count: int, now: float) -> None:
        """Begin so many requests."""
        self._begun.extend([now] * count)
        send(self.socket, REQUEST * count)

    def open(self) -> int:
        """How many are not answered."""
        return len(self._begun)

    def received(self, data: bytes) -> None:
        """Replies, each of which must be the one that is known."""
        tally = self._tally
        parts = self.messages(data)
        for part in parts:
            if part != REPLY[:-4]:
                tally.wrong("not the echo's reply", part)
            took = tally.now - self._begun.popleft()
            if tally.recording:
                tally.latencies.append(took)
        tally.done += len(parts)
        if tally.refill and parts:
            self.ask(len(parts), tally.now)


class Caller(Talking):
    """Asks for its callees in turn."""

    __slots__ = ("_accepted", "_begun", "_queries", "_serial")

    def __init__(
        self, sock: socket.socket, tally: Tally, identifier: str, callees: list[str]
    ) -> None:
        super().__init__(sock, tally)
        self._queries = [
            f"QUERY\r\nIdentifier:{identifier}\r\nCallee:{callee}\r\nTransaction:".encode()
            for callee in callees
        ]
        self._serial = 0
        self._begun: dict[bytes, float] = {}
        self._accepted: set[bytes] = set()

    def ask(self, count: int, now: float) -> None:
        """Begin so many calls."""
        out = b""
        for _ in range(count):
            self._serial += 1
            token = b"%d" % self._serial
            self._begun[token] = now
            out += self._queries[self._serial % len(self._queries)] + token + END
        send(self.socket, out)

    def open(self) -> int:
        """How many are not answered."""
        return len(self._begun)

    def received(self, data: bytes) -> None:
        """*Request Accepted.*, then address, password and key; anything else is an error."""
        tally = self._tally
        parts = self.messages(data)
        done = refused = 0
        for part in parts:
            token = transaction_of(part)
            if part.startswith(ACCEPTED):
                if token not in self._begun:
                    tally.wrong("accepted, but not asked", part)
                self._accepted.add(token)
                continue
            begun = self._begun.pop(token, None)
            if begun is None:
                tally.wrong("not asked, or answered twice", part)
                continue
            if tally.may_refuse and part.startswith(TOO_LATE):
                refused += 1
                self._accepted.discard(token)
                continue
            done += 1
            if not part.startswith(TO_CALLER) or b"\r\nPassword:" not in part:
                tally.wrong("no address and password", part)
            elif token not in self._accepted:
                tally.wrong("not accepted before", part)
            self._accepted.discard(token)
            if tally.recording:
                tally.latencies.append(tally.now - begun)
        tally.done += done
        tally.refused += refused
        if tally.refill and (done or refused):
            self.ask(done + refused, tally.now)


class Callee(Talking):
    """Answers each query of its status, and takes what it is told of its callers."""

    __slots__ = ()

    def received(self, data: bytes) -> None:
        """Queries and credentials."""
        tally = self._tally
        parts = self.messages(data)
        out = b""
        for part in parts:
            if part.startswith(TO_CALLEE):
                tally.told += 1
            elif part.startswith(STATUS):
                out += ACCEPTABLE + transaction_of(part) + END
            else:
                tally.wrong("not for a callee", part)
        if out:
            send(self.socket, out)


class Elsewhere(Talking):
    """A callee's connection to the resolver, over which nothing more comes."""

    __slots__ = ()

    def received(self, data: bytes) -> None:
        """Bytes arrived, and none should."""
        self._tally.wrong("not for a terminal at the resolver", data)


class UdpRegistrar(Talking):
    """Registers whom it accepts, anew and another each time, so that each is a change to keep."""

    __slots__ = ("_begun", "_requests", "_serial")

    def __init__(self, sock: socket.socket, tally: Tally, identifier: str) -> None:
        super().__init__(sock, tally)
        self._requests = [
            "\r\n".join(
                ["REGISTER", f"Identifier:{identifier}", f"Accept:Create {name}", "Transaction:"]
            ).encode()
            for name in names("caller", 2)
        ]
        self._begun: dict[bytes, float] = {}
        self._serial = 0

    def ask(self, count: int, now: float) -> None:
        """Begin so many registrations."""
        out = b""
        for _ in range(count):
            self._serial += 1
            token = b"%d" % self._serial
            self._begun[token] = now
            out += self._requests[self._serial & 1] + token + END
        send(self.socket, out)

    def open(self) -> int:
        """How many are not answered."""
        return len(self._begun)

    def received(self, data: bytes) -> None:
        """Acknowledgements; anything else is an error."""
        tally = self._tally
        parts = self.messages(data)
        for part in parts:
            begun = self._begun.pop(transaction_of(part), None)
            if begun is None:
                tally.wrong("not asked, or answered twice", part)
            elif not part.startswith(REGISTERED):
                tally.wrong("not registered", part)
            elif tally.recording:
                tally.latencies.append(tally.now - begun)
        tally.done += len(parts)
        if tally.refill and parts:
            self.ask(len(parts), tally.now)


class Entrant(Talking):
    """Connects, logs in, and closes; then anew.

    :ivar token: what its next login proves itself with; empty where that is something else
    """

    __slots__ = ("_begun", "_context", "_login", "_port", "_unsent", "_watch", "token")

    def __init__(
        self,
        load: Load,
        tally: Tally,
        identifier: str,
        context: ssl.SSLContext | None,
        watch: Callable[[Connection], None],
    ) -> None:
        """
        :param watch: told of each new connection
        """
        super().__init__(socket.socket(), tally)
        self._port = load.port
        self._context = context
        self._watch = watch
        self._login = f"REGISTER\r\nIdentifier:{identifier}".encode()
        self._begun: float | None = None
        self._unsent = b""
        self.token = b""
        if load.proof == "token":
            self.token = self._first_token()
        elif load.proof == "password":
            self._login += b"\r\nPassword:" + PASSWORD.encode()

    def _first_token(self) -> bytes:
        first = self._login + b"\r\nPassword:" + PASSWORD.encode() + TRANSACTION + b"1" + END
        with dial(self._port, self._context) as sock:
            sock.sendall(first)
            token = value_of(answer_of(sock), TOKEN)
        if not token:
            raise Broken("a login was answered without a token")
        return token

    def ask(self, count: int, now: float) -> None:
        """Log in, unless that is under way."""
        if self._begun is not None:
            return
        self._begun = now
        self._rest = b""
        self.socket.close()  # the unused one that it was made with, the first time
        self.socket = dial(self._port, self._context, handshake=False)
        self.socket.setblocking(False)
        proof = TOKEN + self.token if self.token else b""
        self._unsent = self._login + proof + TRANSACTION + b"1" + END
        self._watch(self)
        self._send()

    def open(self) -> int:
        """Whether a login is under way."""
        return self._begun is not None

    def readable(self) -> None:
        """A step of the handshake, or the answer."""
        if self._unsent:
            self._send()
        else:
            super().readable()

    def _send(self) -> None:
        """Say who this is; over TLS, that takes the handshake first."""
        try:
            send(self.socket, self._unsent)
        except ssl.SSLWantReadError:
            return
        self._unsent = b""

    def received(self, data: bytes) -> None:
        """The answer: close, and begin anew."""
        tally = self._tally
        for part in self.messages(data):
            if self._begun is None:
                tally.wrong("answered twice", part)
                continue
            if part.startswith(REGISTERED):
                tally.done += 1
                if tally.recording:
                    tally.latencies.append(tally.now - self._begun)
                if self.token:
                    self.token = value_of(part, TOKEN) or self.token
            elif tally.may_refuse and part.startswith(TOO_LATE):
                tally.refused += 1
            else:
                tally.wrong("no login", part)
            self._begun = None
            self.socket.close()
            if tally.refill:
                self.ask(1, tally.now)


def trusting(authority: str) -> ssl.SSLContext | None:
    """A client's side of TLS 1.3 that trusts the authority in a file; ``None`` without a file."""
    if not authority:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(authority)
    return context


def dial(
    port: int, context: ssl.SSLContext | None = None, *, handshake: bool = True
) -> socket.socket:
    """A connection to the server; over TLS its handshake is over, or comes with the first bytes."""
    sock = socket.create_connection((HOST, port), timeout=PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if context is None:
        return sock
    return context.wrap_socket(sock, server_hostname=HOST, do_handshake_on_connect=handshake)


def answer_of(sock: socket.socket) -> bytes:
    """Wait for the answer to a registration.

    :raises Broken: it is refused
    """
    answer = b""
    while not answer.endswith(END):
        more = sock.recv(4096)
        if not more:
            raise Broken(f"the connection was closed at its registration: {answer!r}")
        answer += more
    if not answer.startswith(REGISTERED):
        raise Broken(f"a registration was refused: {answer!r}")
    return answer


def connect(
    port: int, registrations: list[bytes], context: ssl.SSLContext | None = None
) -> list[socket.socket]:
    """Make a connection for each registration, and wait until it is acknowledged.

    :param registrations: what each sends first; nothing is awaited where it is empty
    :raises Broken: one is refused
    """
    made: list[socket.socket] = []
    for start in range(0, len(registrations), CONNECTING):
        batch = []
        for registration in registrations[start : start + CONNECTING]:
            sock = dial(port, context)
            sock.sendall(registration)
            batch.append((sock, registration))
        for sock, registration in batch:
            if registration:
                answer_of(sock)
            sock.setblocking(False)
            made.append(sock)
    return made


def registration(
    identifier: str, *, accept: list[str] | None = None, port: int = 1203, proof: str = ""
) -> bytes:
    """What a terminal registers: itself; and with ``accept`` its address and who may call it.

    :param proof: ``password`` where it must prove who it is
    """
    lines = ["REGISTER", f"Identifier:{identifier}"]
    if proof:
        lines.append(f"Password:{PASSWORD}")
    if accept is not None:
        lines += [f"Accept:Add {','.join(accept)}", "Address:127.0.0.1", f"Port:{port}"]
    return "\r\n".join([*lines, "Transaction:r", "", ""]).encode()


def located(identifier: str, port: int = 1203) -> bytes:
    """What a terminal registers at a resolver."""
    lines = ["REGISTER", f"Identifier:{identifier}", "Address:127.0.0.1", f"Port:{port}"]
    return "\r\n".join([*lines, "Transaction:r", "", ""]).encode()


def names(kind: str, count: int) -> list[str]:
    """The identifiers of so many of a kind: callers, callees, those who log in."""
    return [f"{kind}-{number:05}@example.jp" for number in range(count)]
