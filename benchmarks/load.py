"""The load: callers and callees on raw sockets, in a process of its own.

``python -m benchmarks.load JSON`` takes a ``Load`` and prints a ``Result``, both as JSON. It
measures the processor time of the servers it is given around the very interval in which it counts.
Nothing is believed: each reply is matched with its request, and what is not as the protocol says is
an error.

The load never sleeps. To wake a process on another processor costs whoever sends to it several
microseconds, so that a server would look the dearer the longer its load has to wait for it; peers
on other machines cost it nothing of the kind. How long the load had nothing to do is counted
instead, to show that it was not the bottleneck.
"""

from __future__ import annotations

import gc
import json
import math
import random
import select
import socket
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Final, Protocol

import psutil

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

#: Connections made before the server's answers to their registrations are awaited: fewer than fit
#: in the queue of a listening socket.
CONNECTING: Final = 32
#: Seconds after which a server that gives no sign is taken for dead.
PATIENCE: Final = 30.0
#: So many requests in flight a server should answer within its own time limits; with more, it may
#: refuse some (a look-up at a resolver apart may take a second).
IN_TIME: Final = 100
ERRORS_SHOWN: Final = 5

#: Processor time in seconds: all of it, and the kernel's part, which is known to 0.01 s only.
Cpu = tuple[float, float]


@dataclass(frozen=True)
class Load:
    """What to do.

    :ivar kind: ``echo``, ``call`` or ``idle``
    :ivar port: where the server listens on the loopback address
    :ivar resolver: where a resolver listens at which the callees register as well, so that the
        mediator has to ask it in each call; 0 for none
    :ivar callers: how many connections ask; in a call, each has a callee on another connection
    :ivar depth: requests that each has in flight
    :ivar callees: how many callees each caller calls in turn, 16 at the most (a caller's unspent
        sessions)
    :ivar rate: requests a second that all callers together begin, each as long after the one before
        as ``arrivals`` says; 0 for a new one whenever one is done
    :ivar arrivals: ``even`` or ``random`` (exponentially distributed, from a fixed seed)
    :ivar warmup: seconds before the interval that is measured
    :ivar seconds: its length
    :ivar calls: end the interval after so many requests, should that be earlier; 0 for no limit
    :ivar pids: the server's processes, by name
    """

    kind: str
    port: int
    resolver: int = 0
    callers: int = 50
    depth: int = 1
    callees: int = 1
    rate: float = 0.0
    arrivals: str = "even"
    warmup: float = 0.3
    seconds: float = 2.0
    calls: int = 0
    pids: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What came of it, in seconds.

    :ivar calls: requests that were answered in the interval
    :ivar seconds: its length
    :ivar servers: processor time of each server process in the interval
    :ivar spare: how long the load had nothing to do
    :ivar p50: the time from a request to its last reply that half of them kept within
    :ivar p99: the same for 99 in 100
    :ivar refused: how many more were refused because time had run out
    :ivar errors: how many replies were wrong, or missing in the end
    :ivar shown: the first of them
    """

    calls: int
    seconds: float
    servers: dict[str, Cpu]
    spare: float
    p50: float
    p99: float
    refused: int
    errors: int
    shown: list[str]

    @property
    def cpu(self) -> float:
        """Processor time of all server processes together for one request."""
        return (
            sum(every for every, _ in self.servers.values()) / self.calls
            if self.calls
            else math.nan
        )


class Broken(Exception):
    """The run is of no use; the text says why."""


class Tally:
    """What all connections of a load count together.

    :ivar may_refuse: more is in flight than a server must answer in time
    :ivar now: the time of what is read now
    :ivar spare: seconds in which there was nothing to read, while recording
    :ivar latencies: seconds that each request took whose time is recorded
    """

    def __init__(self, *, may_refuse: bool = False) -> None:
        self.now = 0.0
        self.may_refuse = may_refuse
        self.refused = 0
        self.done = 0
        self.told = 0
        self.errors = 0
        self.shown: list[str] = []
        self.refill = False
        self.spare = 0.0
        self.recording = False
        self.latencies: list[float] = []

    def wrong(self, what: str, message: bytes = b"") -> None:
        """Count an error, and remember the first few."""
        self.errors += 1
        if len(self.shown) < ERRORS_SHOWN:
            self.shown.append(f"{what}: {message!r}" if message else what)


class Connection(Protocol):
    """One connection of the load."""

    socket: socket.socket

    def received(self, data: bytes) -> None:
        """Bytes arrived."""


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
    start = message.find(TRANSACTION)
    if start < 0:
        return b""
    start += len(TRANSACTION)
    end = message.find(b"\r", start)
    return message[start:] if end < 0 else message[start:end]


class EchoCaller:
    """Asks the bare echo; its replies come in order."""

    __slots__ = ("_begun", "_rest", "_tally", "socket")

    def __init__(self, sock: socket.socket, tally: Tally) -> None:
        self.socket = sock
        self._tally = tally
        self._begun: deque[float] = deque()
        self._rest = b""

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
        if self._rest:
            data = self._rest + data
        parts = data.split(END)
        self._rest = parts.pop()
        for part in parts:
            if part != REPLY[:-4]:
                tally.wrong("not the echo's reply", part)
            took = tally.now - self._begun.popleft()
            if tally.recording:
                tally.latencies.append(took)
        tally.done += len(parts)
        if tally.refill and parts:
            self.ask(len(parts), tally.now)


class Caller:
    """Asks for its callees in turn."""

    __slots__ = ("_accepted", "_begun", "_next", "_queries", "_rest", "_serial", "_tally", "socket")

    def __init__(
        self, sock: socket.socket, tally: Tally, identifier: str, callees: list[str]
    ) -> None:
        self.socket = sock
        self._tally = tally
        self._queries = [
            f"QUERY\r\nIdentifier:{identifier}\r\nCallee:{callee}\r\nTransaction:".encode()
            for callee in callees
        ]
        self._next = 0
        self._serial = 0
        self._begun: dict[bytes, float] = {}
        self._accepted: set[bytes] = set()
        self._rest = b""

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
        if self._rest:
            data = self._rest + data
        parts = data.split(END)
        self._rest = parts.pop()
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


class Callee:
    """Answers each query of its status, and takes what it is told of its callers."""

    __slots__ = ("_rest", "_tally", "socket")

    def __init__(self, sock: socket.socket, tally: Tally) -> None:
        self.socket = sock
        self._tally = tally
        self._rest = b""

    def received(self, data: bytes) -> None:
        """Queries and credentials."""
        tally = self._tally
        if self._rest:
            data = self._rest + data
        parts = data.split(END)
        self._rest = parts.pop()
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


class Elsewhere:
    """A callee's connection to the resolver, over which nothing more comes."""

    def __init__(self, sock: socket.socket, tally: Tally) -> None:
        self.socket = sock
        self._tally = tally

    def received(self, data: bytes) -> None:
        """Bytes arrived, and none should."""
        self._tally.wrong("not for a terminal at the resolver", data)


def connect(port: int, registrations: list[bytes]) -> list[socket.socket]:
    """Make a connection for each registration, and wait until it is acknowledged.

    :param registrations: what each sends first; nothing is awaited where it is empty
    :raises Broken: one is refused
    """
    made: list[socket.socket] = []
    for start in range(0, len(registrations), CONNECTING):
        batch = []
        for registration in registrations[start : start + CONNECTING]:
            sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(registration)
            batch.append((sock, registration))
        for sock, registration in batch:
            if registration:
                answer = b""
                while not answer.endswith(END):
                    more = sock.recv(4096)
                    if not more:
                        raise Broken(f"the connection was closed at its registration: {answer!r}")
                    answer += more
                if not answer.startswith(REGISTERED):
                    raise Broken(f"a registration was refused: {answer!r}")
            sock.setblocking(False)
            made.append(sock)
    return made


def registration(identifier: str, *, accept: list[str] | None = None, port: int = 1203) -> bytes:
    """What a terminal registers: itself; and with ``accept`` its address and who may call it."""
    lines = ["REGISTER", f"Identifier:{identifier}"]
    if accept is not None:
        lines += [f"Accept:Add {','.join(accept)}", "Address:127.0.0.1", f"Port:{port}"]
    return "\r\n".join([*lines, "Transaction:r", "", ""]).encode()


def located(identifier: str, port: int = 1203) -> bytes:
    """What a terminal registers at a resolver."""
    lines = ["REGISTER", f"Identifier:{identifier}", "Address:127.0.0.1", f"Port:{port}"]
    return "\r\n".join([*lines, "Transaction:r", "", ""]).encode()


def callers_of(load: Load, tally: Tally) -> tuple[list[Asking], list[Connection]]:
    """All connections of a load: those that ask, and the others."""
    if load.kind == "echo":
        socks = connect(load.port, [b""] * load.callers)
        return [EchoCaller(sock, tally) for sock in socks], []
    count = load.callers
    callers = [f"caller-{n:05}@example.jp" for n in range(count)]
    callees = [f"callee-{n:05}@example.jp" for n in range(count)]
    each = min(load.callees, count)
    answering: list[Connection] = [
        Callee(sock, tally)
        for sock in connect(
            load.port,
            [
                registration(callees[n], accept=[callers[(n - k) % count] for k in range(each)])
                for n in range(count)
            ],
        )
    ]
    if load.resolver:
        elsewhere = [located(callee) for callee in callees]
        answering += [Elsewhere(sock, tally) for sock in connect(load.resolver, elsewhere)]
    asking: list[Asking] = [
        Caller(sock, tally, callers[n], [callees[(n + k) % count] for k in range(each)])
        for n, sock in enumerate(connect(load.port, [registration(name) for name in callers]))
    ]
    return asking, answering


class Run:
    """One load on one server."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._tally = Tally(may_refuse=load.callers * load.depth > IN_TIME)
        self._asking, answering = callers_of(load, self._tally)
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        for connection in (*self._asking, *answering):
            self._connections[connection.socket.fileno()] = connection
            self._epoll.register(connection.socket, select.EPOLLIN)
        self._processes = {name: psutil.Process(pid) for name, pid in load.pids.items()}
        self._turn = 0
        self._due = 0.0
        self._random = random.Random(1)

    def measure(self) -> Result:
        """Warm up, measure, and wait for what is open."""
        load = self._load
        tally = self._tally
        tally.refill = not load.rate
        now = self._due = time.perf_counter()
        if tally.refill:
            for asking in self._asking:
                asking.ask(load.depth, now)
        self._go_on(now + load.warmup, 0)
        servers = self._times()
        done = tally.done
        refused = tally.refused
        tally.recording = True
        begun = time.perf_counter()
        self._go_on(begun + load.seconds, done + load.calls if load.calls else 0)
        ended = time.perf_counter()
        tally.recording = False
        after = self._times()
        calls = tally.done - done
        self._finish()
        latencies = sorted(tally.latencies)
        return Result(
            calls=calls,
            seconds=ended - begun,
            servers={
                name: (after[name][0] - every, after[name][1] - kernel)
                for name, (every, kernel) in servers.items()
            },
            spare=tally.spare,
            p50=percentile(latencies, 0.5),
            p99=percentile(latencies, 0.99),
            refused=tally.refused - refused,
            errors=tally.errors,
            shown=tally.shown,
        )

    def _times(self) -> dict[str, Cpu]:
        return {name: cpu_of(process) for name, process in self._processes.items()}

    def _go_on(self, until: float, done: int) -> None:
        """Ask and answer until then, or until so many requests are done."""
        tally = self._tally
        rate = self._load.rate
        silent_since = time.perf_counter()
        while True:
            tally.now = now = time.perf_counter()
            if now >= until or (done and tally.done >= done):
                return
            if rate:
                self._begin_due(now)
            events = self._epoll.poll(0)  # never asleep: see the module
            if events:
                self._read(events)
                silent_since = now
            else:
                if tally.recording:
                    tally.spare += time.perf_counter() - now
                if now - silent_since > PATIENCE:
                    raise Broken("the server has fallen silent")

    def _read(self, events: list[tuple[int, int]]) -> None:
        tally = self._tally
        connections = self._connections
        tally.now = time.perf_counter()
        for number, _ in events:
            connection = connections[number]
            data = connection.socket.recv(65536)
            if not data:
                raise Broken("the server has closed a connection")
            connection.received(data)

    def _begin_due(self, now: float) -> None:
        """Begin what is due, as of when it was due: waiting for a late start counts as well."""
        load = self._load
        while self._due <= now:
            self._asking[self._turn].ask(1, self._due)
            self._turn = (self._turn + 1) % len(self._asking)
            if load.arrivals == "random":
                self._due += self._random.expovariate(load.rate)
            else:
                self._due += 1 / load.rate

    def _finish(self) -> None:
        """Every request must have its reply, and each callee have been told."""
        tally = self._tally
        tally.refill = False
        until = time.perf_counter() + PATIENCE
        while self._open() or (self._load.kind == "call" and tally.told < tally.done):
            events = self._epoll.poll(0.1)
            if events:
                self._read(events)
            elif time.perf_counter() > until:
                tally.wrong(f"{self._open()} not answered, {tally.done - tally.told} not told")
                break
        for connection in self._connections.values():
            connection.socket.close()
        self._epoll.close()

    def _open(self) -> int:
        return sum(asking.open() for asking in self._asking)


def cpu_of(process: psutil.Process) -> Cpu:
    """The processor time that all threads of a process have had so far."""
    spent = process.cpu_times()
    every = spent.user + spent.system
    if sys.platform == "linux":  # its clock counts nanoseconds: clock_getcpuclockid(3)
        every = time.clock_gettime((~process.pid << 3) | 2)
    return every, spent.system


def percentile(ordered: list[float], share: float) -> float:
    """The least of the values that so great a share of them does not exceed; NaN for none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def idle(load: Load) -> None:
    """Hold registered terminals with five permits each until the standard input ends.

    A fifth of them comes first, and the rest once a line is read: what a server had free before it
    served anybody is used up by then.
    """
    names = [f"terminal-{n:06}@example.jp" for n in range(load.callers)]
    registrations = [
        registration(name, accept=[names[(n + k) % len(names)] for k in range(1, 6)])
        for n, name in enumerate(names)
    ]
    first = len(names) // 5
    socks = connect(load.port, registrations[:first])
    print(json.dumps({"ready": len(socks)}), flush=True)
    sys.stdin.readline()
    socks += connect(load.port, registrations[first:])
    print(json.dumps({"ready": len(socks)}), flush=True)
    sys.stdin.read()


def main() -> int:
    """Run one load."""
    load = Load(**json.loads(sys.argv[1]))
    gc.disable()
    try:
        if load.kind == "idle":
            idle(load)
            return 0
        result = Run(load).measure()
    except (Broken, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(asdict(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
