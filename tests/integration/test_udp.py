"""Registration by UDP, with real processes and a terminal written in plain sockets (D1, E1, E3)."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import psutil
import pytest

from broker.messages.datagram import parse_datagram
from broker.messages.message import Message
from broker.messages.signing import sign, verify
from tests.integration.test_login import DATABASE, PASSWORD, account
from tests.integration.test_operator import operate
from tests.support.processes import PATIENCE, Processes, Running, Typing

pytestmark = pytest.mark.integration

DATAGRAMS: Final = r"Listening for datagrams on .*:(\d+)$"
#: Forged datagrams that a flood consists of, in each run and in the slow one.
FLOOD: Final = 20_000
LONG_FLOOD: Final = int(os.environ.get("BROKER_FLOOD", "1000000"))
#: Keepalives that may be without an answer before the flood waits: it is as fast as its server.
WINDOW: Final = 20
#: Seconds without any answer after which one is taken for lost.
SILENCE: Final = 10.0


#: What the test that is running has opened.
OPEN: Final[list[socket.socket | Typing]] = []


@pytest.fixture(autouse=True)
def closing() -> Iterator[None]:
    """Whatever was opened is closed in the end."""
    yield
    for one in OPEN:
        one.__exit__()
    OPEN.clear()


def udp(port: int, host: str = "127.0.0.1") -> socket.socket:
    """A socket from which datagrams go to a port of the server's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM)
    OPEN.append(made)
    made.settimeout(PATIENCE)
    made.connect((host, port))
    return made


@dataclass
class Site:
    """A mediator, its resolver inside or apart, and where each listens."""

    mediator: Running
    port: int
    udp: int
    resolver: Running


def start(processes: Processes, *, apart: bool = False) -> Site:
    """Start them; Ia, Ib and Ic have accounts."""
    account(processes.folder, "Ia", "Ib", "Ic")
    options = ("--auth=password", DATABASE, "--trace")
    if not apart:
        running, port = processes.mediator(*options)
        return Site(running, port, int(running.wait_for(DATAGRAMS)[1]), running)
    resolver, at = processes.resolver("--trace")
    udp = int(resolver.wait_for(DATAGRAMS)[1])
    running, port = processes.mediator(*options, f"--resolver=tcp:127.0.0.1:{at}")
    return Site(running, port, udp, resolver)


class Terminal:
    """A terminal that sends datagrams, and holds a connection while it wants to.

    :ivar line: that connection
    """

    def __init__(self, site: Site, identifier: str) -> None:
        self.identifier = identifier
        self.site = site
        self.proof = f"Password:{PASSWORD}"
        self.sequence = 0
        self.socket = udp(site.udp)

    def connect(self, *lines: str, before: str = "") -> dict[str, str]:
        """Log in, and register; what the answer tells.

        :param before: what is asked first
        """
        self.line = Typing(self.site.port)
        OPEN.append(self.line)
        said = ["REGISTER", f"Identifier:{self.identifier}", self.proof, *lines, "Transaction:1"]
        self.line.type("\n".join([*said, "", ""]))
        answer = self.line.read(2 if before else 1)
        assert answer.startswith(f"{before}NOTIFY\nRegistration Completed.\n"), answer
        fields = answer.removeprefix(before).splitlines()
        told = dict(line.split(":", 1) for line in fields if ":" in line)
        self.proof = f"Token:{told['Token']}"
        return told

    def gets_a_key(self, *lines: str, before: str = "") -> None:
        """The same with a key for datagrams."""
        told = self.connect("UDP:Yes", *lines, before=before)
        assert told["Interval"] == "25"
        self.name, self.key = told["Key ID"], bytes.fromhex(told["Registration Key"])

    def datagram(self, sequence: int = 0, **fields: str) -> bytes:
        """A signed ``REGISTER``."""
        self.sequence += 1
        message = Message("REGISTER", Identifier=self.identifier, **fields)
        message.fields["Key ID"] = self.name
        message.fields["Sequence"] = str(sequence or self.sequence)
        return sign(message, self.key)

    def hears(self) -> Message:
        """A datagram that is signed with its key."""
        data = self.socket.recv(2000)
        assert verify(data, self.key)
        return parse_datagram(data)

    def registers(self) -> None:
        """Register by UDP from a source that is new."""
        self.socket.send(self.datagram())
        cookie = self.hears().fields["Challenge"]
        self.socket.send(self.datagram(Challenge=cookie))
        self.expects_completed()

    def keeps_alive(self) -> None:
        """Send a keepalive, and have it answered."""
        self.socket.send(self.datagram())
        self.expects_completed()

    def expects_completed(self) -> None:
        """The answer to a datagram of its own, the last one."""
        answer = self.hears()
        assert answer.statement == "Registration Completed."
        assert answer.fields["Sequence"] == str(self.sequence)

    def is_answered(self) -> bool:
        """Whether a keepalive still has an answer."""
        self.socket.send(self.datagram())
        if not select.select([self.socket], [], [], 0.3)[0]:
            return False
        self.expects_completed()
        return True

    def hears_nothing(self, seconds: float = 0.3) -> None:
        """Nothing comes for a while."""
        self.socket.settimeout(seconds)
        with pytest.raises(TimeoutError):
            self.socket.recv(2000)
        self.socket.settimeout(PATIENCE)

    def goes_quiet(self) -> None:
        """Close the connection."""
        self.line.__exit__()


@pytest.mark.parametrize("apart", [False, True], ids=["inside", "apart"])
class WholeWayTests:
    """A terminal that holds no connection is called (C1, D1, E1)."""

    def test_called(self, processes: Processes, apart: bool) -> None:
        """It logs in, registers by UDP, goes quiet, is told to connect, and takes the call.

        The address that the caller is told is the one its datagrams come from.
        """
        site = start(processes, apart=apart)
        callee, caller = Terminal(site, "Ib"), Terminal(site, "Ia")
        callee.gets_a_key("Accept:Create Ia", "Port:5000")
        callee.registers()
        callee.keeps_alive()
        callee.goes_quiet()
        callee.keeps_alive()
        caller.connect()
        caller.line.type("QUERY\nCallee:Ib\n\n")
        notice = callee.hears()
        assert notice.masked()[:4] == [
            "NOTIFY",
            "Connection Requested.",
            "Identifier:Ib",
            f"Key ID:{callee.name}",
        ]
        callee.gets_a_key("Port:5000", before="QUERY\nSTATUS\nTransaction:1\n\n")
        callee.line.type("NOTIFY\nSTATUS Acceptable.\nTransaction:1\n\n")
        assert "\nCaller ID:Ia\n" in callee.line.read()
        assert caller.line.read(2).startswith(
            "NOTIFY\nRequest Accepted.\n\nNOTIFY\nCallee Address:127.0.0.1\n"
        )
        for running in {site.mediator, site.resolver}:
            assert "Traceback" not in running.said
            assert callee.key.hex() not in running.said

    def test_not_there(self, processes: Processes, apart: bool) -> None:
        """Notices are repeated until the call's time is over; each is later than the last (E3)."""
        site = start(processes, apart=apart)
        callee, caller = Terminal(site, "Ib"), Terminal(site, "Ia")
        callee.gets_a_key("Accept:Create Ia")
        callee.registers()
        callee.goes_quiet()
        caller.connect()
        caller.line.type("QUERY\nCallee:Ib\n\n")
        told = [int(callee.hears().fields["Sequence"]) for _ in range(6)]
        assert told == sorted(set(told))
        assert caller.line.read() == "NOTIFY\nCallee not Connected.\n\n"
        callee.hears_nothing(2.1)

    def test_account_removed(self, processes: Processes, apart: bool) -> None:
        """With its account a terminal's key is void at once (I2)."""
        site = start(processes, apart=apart)
        terminal = Terminal(site, "Ib")
        terminal.gets_a_key()
        terminal.registers()
        terminal.goes_quiet()
        operate(processes.folder, "account", "remove", "Ib")
        deadline = time.monotonic() + PATIENCE
        while apart and terminal.is_answered():  # the resolver is told of it a moment later
            assert time.monotonic() < deadline
        terminal.socket.send(terminal.datagram())
        terminal.hears_nothing()

    def test_moves(self, processes: Processes, apart: bool) -> None:
        """From another source it is challenged, and is there then (D1)."""
        site = start(processes, apart=apart)
        terminal = Terminal(site, "Ib")
        terminal.gets_a_key()
        terminal.registers()
        old = terminal.socket
        terminal.socket = udp(site.udp)
        terminal.registers()
        terminal.keeps_alive()
        old.send(terminal.datagram())
        terminal.socket = old
        assert "Challenge" in terminal.hears().fields


class RestartTests:
    """A resolver apart that is started anew, and so has forgotten everything."""

    def test_resolver_restarted(self, processes: Processes) -> None:
        """The mediator tells it the keys again; who is challenged again needs no new login."""
        site = start(processes, apart=True)
        terminal = Terminal(site, "Ib")
        terminal.gets_a_key()
        terminal.registers()
        terminal.goes_quiet()
        before = site.resolver
        (tcp,) = [one for one in before.out if "Listening on" in one]
        before.end()
        port = tcp.rpartition(":")[2]
        again = processes.twistd(
            "broker-resolver",
            f"--listen=tcp:{port}:interface=127.0.0.1",
            f"--udp={site.udp}:127.0.0.1",
        )
        again.wait_for(DATAGRAMS)
        terminal.socket.settimeout(0.2)
        answer: Message | None = None
        deadline = time.monotonic() + PATIENCE
        while answer is None:
            assert time.monotonic() < deadline
            with suppress(TimeoutError, ConnectionRefusedError):
                terminal.socket.send(terminal.datagram())
                answer = terminal.hears()
        terminal.socket.settimeout(PATIENCE)
        terminal.socket.send(terminal.datagram(Challenge=answer.fields["Challenge"]))
        terminal.expects_completed()


class PortTests:
    """The port for datagrams."""

    def test_in_use(self, processes: Processes) -> None:
        """One that is in use is why a role doesn't start: one line, status 1."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            for role in ("broker", "broker-resolver"):
                running = processes.twistd(
                    role,
                    "--listen=tcp:0:interface=127.0.0.1",
                    f"--udp={port}:127.0.0.1",
                )
                assert running.wait() == 1
                (line,) = running.err
                assert (
                    line == f"{role}: cannot listen on udp:{port}:127.0.0.1: Address already in use"
                )

    def test_none(self, processes: Processes) -> None:
        """Without one nobody is given a key."""
        running, port = processes.mediator("--udp=none", "--store=memory:")
        with Typing(port) as line:
            line.type("REGISTER\nIdentifier:Ib\nUDP:Yes\nTransaction:1\n\n")
            assert "UDP is not offered by this server" in line.read()
        assert "datagrams" not in running.said

    def test_ipv6(self, processes: Processes) -> None:
        """It may be an IPv6 one."""
        running, _ = processes.mediator("--udp=0:::1", "--store=memory:")
        port = int(running.wait_for(DATAGRAMS)[1])
        asking = udp(port, "::1")
        asking.send(b"QUERY\r\nADDRESS\r\nPadding:" + b"x" * 100 + b"\r\n\r\n")
        mine = asking.getsockname()[1]
        assert asking.recv(2000) == f"NOTIFY\r\nAddress:::1\r\nPort:{mine}\r\n\r\n".encode()


class FloodTests:
    """What strangers can do by sending much (I12, I13, I14, I16)."""

    @pytest.mark.parametrize(
        "count",
        [FLOOD, pytest.param(LONG_FLOOD, marks=pytest.mark.slow)],  # slow: a million of them
    )
    def test_flood(self, processes: Processes, count: int) -> None:
        """Nothing moves, nothing is kept, no more comes back than went in; the terminals go on.

        Of their keepalives under one in a hundred stays without an answer meanwhile.
        """
        site = start(processes)
        terminals = [Terminal(site, "Ib") for _ in range(5)]
        for terminal in terminals:
            terminal.gets_a_key("Accept:Create Ia")
            terminal.registers()
            terminal.keeps_alive()
            terminal.socket.setblocking(False)
        kinds = forgeries(terminals[0])
        strangers = [udp(site.udp) for _ in range(100)]
        for stranger in strangers:
            stranger.setblocking(False)
        process = psutil.Process(site.mediator.process.pid)
        before = process.memory_info().rss
        sent = received = 0
        keepalives = Keepalives([terminal.socket for terminal in terminals])
        for n in range(count):
            stranger = strangers[n % len(strangers)]
            sent += stranger.send(kinds[n % len(kinds)])
            received += _read(stranger)[1]
            if n % 100 == 0:
                terminal = terminals[(n // 100) % len(terminals)]
                keepalives.send(terminal.socket, terminal.datagram())
        keepalives.settle()
        while readable := select.select(strangers, [], [], 0.1)[0]:
            received += sum(_read(stranger)[1] for stranger in readable)
        grown = process.memory_info().rss - before
        assert keepalives.lost < keepalives.sent / 100
        assert 0 < received <= sent
        assert grown < 4 * 2**20
        for terminal in terminals:
            terminal.socket.setblocking(True)
            terminal.socket.settimeout(PATIENCE)
            terminal.keeps_alive()


def forgeries(terminal: Terminal) -> list[bytes]:
    """One datagram of each kind that a stranger can send."""
    caught = terminal.datagram(sequence=1)
    return [
        sign(Message("REGISTER", Identifier="Ib", Key_ID="K" + "x" * 22, Sequence=9), b"x" * 32),
        caught[:-68] + b"0" * 64 + caught[-4:],  # another signature
        caught,  # which was accepted long since
        b"QUERY\r\nADDRESS\r\nPadding:" + b"x" * 100 + b"\r\n\r\n",
        b"\xff" * 1200,
        b"",
    ]


class Keepalives:
    """Those of some sockets, counted: never more than a window of them without an answer.

    :ivar sent: how many went out
    :ivar lost: how many have no answer, and none is expected
    """

    def __init__(self, sockets: list[socket.socket]) -> None:
        self.sent = self.lost = self._answered = 0
        self._sockets = sockets

    def send(self, sock: socket.socket, datagram: bytes) -> None:
        """Send one, as soon as the window has room."""
        sock.send(datagram)
        self.sent += 1
        self._wait(WINDOW)

    def settle(self) -> None:
        """Wait for the answers to all."""
        self._wait(0)

    def _wait(self, most: int) -> None:
        while (missing := self.sent - self._answered - self.lost) > most:
            readable = select.select(self._sockets, [], [], SILENCE)[0]
            if not readable:
                self.lost += missing
            self._answered += sum(_read(one)[0] for one in readable)


def _read(sock: socket.socket) -> tuple[int, int]:
    """All that has come: how many datagrams, and bytes."""
    count = octets = 0
    while True:
        try:
            octets += len(sock.recv(2000))
        except BlockingIOError:
            return count, octets
        count += 1
