"""The load: callers and callees on raw sockets, in a process of its own.

``python -m benchmarks.load JSON`` takes a ``Load`` and prints a ``Result``, both as JSON. It
measures the processor time of the servers it is given around the very interval in which it counts.

The load never sleeps. To wake a process on another processor costs whoever sends to it several
microseconds, so that a server would look the dearer the longer its load has to wait for it; peers
on other machines cost it nothing of the kind. How long the load had nothing to do is counted
instead, to show that it was not the bottleneck.
"""

from __future__ import annotations

import gc
import json
import random
import select
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

import psutil

from benchmarks.counting import Broken, Cpu, Load, Result, Tally, cpu_of, percentile
from benchmarks.datagrams import keepers
from benchmarks.peers import (
    PATIENCE,
    Asking,
    Callee,
    Caller,
    Connection,
    EchoCaller,
    Elsewhere,
    Entrant,
    UdpRegistrar,
    connect,
    located,
    names,
    registration,
    trusting,
)

#: So many requests in flight a server should answer within its own time limits; with more, it may
#: refuse some (a look-up at a resolver apart may take a second).
IN_TIME: Final = 100
#: Seconds that a load which may sleep does so at a time.
NAP: Final = 0.05

#: All connections of a load: those that ask, and the others.
Parties = tuple[list[Asking], list[Connection]]


def echo_callers(load: Load, tally: Tally) -> Parties:
    """Those that ask the bare echo."""
    socks = connect(load.port, [b""] * load.callers)
    return [EchoCaller(sock, tally) for sock in socks], []


def registrars(load: Load, tally: Tally) -> Parties:
    """Those that register again and again."""
    who = names("terminal", load.callers)
    socks = connect(load.port, [registration(name) for name in who], trusting(load.tls))
    asking: list[Asking] = [
        UdpRegistrar(sock, tally, name) for name, sock in zip(who, socks, strict=True)
    ]
    return asking, []


def keeping_alive(load: Load, tally: Tally) -> Parties:
    """Those that send keepalives by UDP."""
    return [*keepers(load, tally)], []


def entrants_of(load: Load, tally: Tally, watch: Callable[[Connection], None]) -> list[Asking]:
    """Those that log in again and again."""
    made: list[Asking] = []
    for name in names("entrant", load.callers):
        context = trusting(load.tls)
        if load.proof == "certificate" and context is not None:
            base = Path(load.credentials) / name
            context.load_cert_chain(f"{base}.pem", f"{base}.key")
        made.append(Entrant(load, tally, name, context, watch))
    return made


def callers_of(load: Load, tally: Tally) -> Parties:
    """Callers and their callees."""
    context = trusting(load.tls)
    count = load.callers
    callers = names("caller", count)
    callees = names("callee", count)
    each = min(load.callees, count)
    answering: list[Connection] = [
        Callee(sock, tally)
        for sock in connect(
            load.port,
            [
                registration(
                    callees[n],
                    accept=[callers[(n - k) % count] for k in range(each)],
                    proof=load.proof,
                )
                for n in range(count)
            ],
            context,
        )
    ]
    if load.resolver:
        elsewhere = [located(callee) for callee in callees]
        answering += [Elsewhere(sock, tally) for sock in connect(load.resolver, elsewhere)]
    asking: list[Asking] = [
        Caller(sock, tally, callers[n], [callees[(n + k) % count] for k in range(each)])
        for n, sock in enumerate(
            connect(load.port, [registration(name, proof=load.proof) for name in callers], context)
        )
    ]
    return asking, answering


class Run:
    """One load on one server."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._tally = Tally(may_refuse=load.kind == "login" or load.callers * load.depth > IN_TIME)
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._asking = self._all()
        self._processes = {name: psutil.Process(pid) for name, pid in load.pids.items()}
        self._turn = 0
        self._due = 0.0
        self._random = random.Random(1)

    def _all(self) -> list[Asking]:
        """Make all connections; those that ask."""
        load = self._load
        if load.kind == "login":
            return entrants_of(load, self._tally, self._watch)
        asking, others = KINDS[load.kind](load, self._tally)
        for connection in (*asking, *others):
            self._watch(connection)
        return asking

    def _watch(self, connection: Connection) -> None:
        """Read from a connection from now on, until it is closed."""
        self._connections[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket, select.EPOLLIN)

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
        asleep = NAP if self._load.sleeping else 0  # never asleep otherwise: see the module
        silent_since = time.perf_counter()
        while True:
            tally.now = now = time.perf_counter()
            if now >= until or (done and tally.done >= done):
                return
            if rate:
                self._begin_due(now)
            events = self._epoll.poll(asleep)
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
            connections[number].readable()

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


def idle(load: Load) -> None:
    """Hold registered terminals with five permits each until the standard input ends.

    A fifth of them comes first, and the rest once a line is read: what a server had free before it
    served anybody is used up by then.
    """
    who = names("terminal", load.callers)
    registrations = [
        registration(name, accept=[who[(n + k) % len(who)] for k in range(1, 6)])
        for n, name in enumerate(who)
    ]
    first = len(who) // 5
    context = trusting(load.tls)
    socks = connect(load.port, registrations[:first], context)
    print(json.dumps({"ready": len(socks)}), flush=True)
    sys.stdin.readline()
    socks += connect(load.port, registrations[first:], context)
    print(json.dumps({"ready": len(socks)}), flush=True)
    sys.stdin.read()


#: Who takes part in a load of each kind whose connections last.
KINDS: Final[dict[str, Callable[[Load, Tally], Parties]]] = {
    "echo": echo_callers,
    "call": callers_of,
    "register": registrars,
    "keepalive": keeping_alive,
}


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
