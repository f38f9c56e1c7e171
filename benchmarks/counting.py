"""What a load is told to do, what it counts, and what comes of it."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, field
from typing import Final

import psutil

ERRORS_SHOWN: Final = 5

#: Processor time in seconds: all of it, and the kernel's part, which is known to 0.01 s only.
Cpu = tuple[float, float]


@dataclass(frozen=True)
class Load:
    """What to do.

    :ivar kind: ``echo``, ``call``, ``register``, ``login``, ``keepalive`` or ``idle``
    :ivar port: where the server listens on the loopback address
    :ivar resolver: where a resolver listens at which the callees register as well, so that the
        mediator has to ask it in each call; 0 for none
    :ivar udp: where it takes datagrams; 0 where none are sent
    :ivar callers: how many connections ask; in a call, each has a callee on another connection
    :ivar depth: requests that each has in flight; of logins, each has one
    :ivar callees: how many callees each caller calls in turn, 16 at the most (a caller's unspent
        sessions)
    :ivar rate: requests a second that all callers together begin, each as long after the one before
        as ``arrivals`` says; 0 for a new one whenever one is done
    :ivar arrivals: ``even`` or ``random`` (exponentially distributed, from a fixed seed)
    :ivar warmup: seconds before the interval that is measured
    :ivar seconds: its length
    :ivar calls: end the interval after so many requests, should that be earlier; 0 for no limit
    :ivar pids: the server's processes, by name
    :ivar tls: the file of the authority by which the server's certificate was issued, where all
        connections are TLS 1.3; else empty
    :ivar proof: how those that log in, or call and are called, prove who they are: ``password``,
        ``token`` or ``certificate``, the latter two in logins only; empty where they are believed
    :ivar credentials: the folder that holds the clients' certificates and keys, each in a file
        named after its identifier
    :ivar sleeping: wait for the server asleep, because another load needs the processor more
    """

    kind: str
    port: int
    resolver: int = 0
    udp: int = 0
    callers: int = 50
    depth: int = 1
    callees: int = 1
    rate: float = 0.0
    arrivals: str = "even"
    warmup: float = 0.3
    seconds: float = 2.0
    calls: int = 0
    pids: dict[str, int] = field(default_factory=dict)
    tls: str = ""
    proof: str = ""
    credentials: str = ""
    sleeping: bool = False


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
        """Processor time of all server processes together for one request; NaN if unknown."""
        if not self.calls or not self.servers:
            return math.nan
        return sum(every for every, _ in self.servers.values()) / self.calls


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
