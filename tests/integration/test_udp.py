"""Registration by UDP, with real processes and a terminal written in plain sockets (D1, E1, E3)."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

import psutil
import pytest

from broker.messages.datagram import parse_datagram
from broker.messages.message import Message
from broker.messages.signing import sign, verify
from tests.integration.site import PASSWORD, Site, account
from tests.support.processes import PATIENCE, Running

pytestmark = pytest.mark.integration

DATAGRAMS: Final = r"Listening for datagrams on .*:(\d+)$"
ACCOUNTS: Final = ("Ia", "Ib", "Ic", "Id", "Ie")
#: Forged datagrams that a flood consists of, in each run and in the slow one.
FLOOD: Final = 20_000
LONG_FLOOD: Final = int(os.environ.get("BROKER_FLOOD", "1000000"))
#: Keepalives that may be without an answer before the flood waits: it is as fast as its server.
WINDOW: Final = 20
#: Seconds without any answer after which one is taken for lost.
SILENCE: Final = 10.0


def udp(site: Site, port: int, host: str = "127.0.0.1") -> socket.socket:
    """A socket from which datagrams go to a port of the server's; it closes with the site."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = site.enter_context(socket.socket(family, socket.SOCK_DGRAM))
    made.settimeout(PATIENCE)
    made.connect((host, port))
    return made


class Service(NamedTuple):
    """A mediator, its resolver inside or apart, and where datagrams go.

    :ivar site: where the mediator is
    """

    site: Site
    udp: int
    resolver: Running

    @property
    def apart(self) -> bool:
        """Whether the resolver is a process of its own."""
        return self.resolver is not self.site.running


def start(site: Site, *, apart: bool = False) -> Service:
    """Start them; Ia to Ie have accounts."""
    account(site.folder, *ACCOUNTS)
    if not apart:
        running = site.serve_accounts()
        return Service(site, int(running.wait_for(DATAGRAMS)[1]), running)
    resolver, at = site.resolver("--trace")
    udp = int(resolver.wait_for(DATAGRAMS)[1])
    site.serve_accounts(f"--resolver=tcp:127.0.0.1:{at}")
    return Service(site, udp, resolver)


class Terminal:
    """A terminal that sends datagrams, and holds a connection while it wants to.

    :ivar line: that connection
    """

    def __init__(self, service: Service, identifier: str) -> None:
        self.identifier = identifier
        self.service = service
        self.proof = f"Password:{PASSWORD}"
        self.sequence = 0
        self.socket = udp(service.site, service.udp)

    def connect(self, *lines: str, before: str = "") -> dict[str, str]:
        """Log in, and register; what the answer tells.

        :param before: what is asked first
        """
        self.line = self.service.site.enter_context(self.service.site.typing())
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


@pytest.fixture(scope="class", params=["inside", "apart"])
def service(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Service]:
    """A resolver inside the mediator, and one apart."""
    with Site(tmp_path_factory.mktemp(request.param)) as site:
        yield start(site, apart=request.param == "apart")


class WholeWayTests:
    """A terminal that holds no connection is called (C1, D1, E1)."""

    def test_when_it_is_called_then_a_notice_has_it_connect(self, service: Service) -> None:
        """It logs in, registers by UDP, goes quiet, is told to connect, and takes the call.

        The address that the caller is told is the one its datagrams come from.
        """
        callee, caller = Terminal(service, "Ib"), Terminal(service, "Ia")
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
        for running in (service.site.running, service.resolver):
            assert "Traceback" not in running.said
            assert callee.key.hex() not in running.said

    def test_when_it_does_not_come_then_notices_are_repeated(self, service: Service) -> None:
        """Until the call's time is over; each is later than the last (E3)."""
        callee, caller = Terminal(service, "Ic"), Terminal(service, "Ia")
        callee.gets_a_key("Accept:Create Ia")
        callee.registers()
        callee.goes_quiet()
        caller.connect()
        caller.line.type("QUERY\nCallee:Ic\n\n")
        told = [int(callee.hears().fields["Sequence"]) for _ in range(6)]
        assert told == sorted(set(told))
        assert caller.line.read() == "NOTIFY\nCallee not Connected.\n\n"
        callee.hears_nothing(2.1)

    def test_when_its_account_is_removed_then_its_key_is_void(self, service: Service) -> None:
        """At once (I2)."""
        terminal = Terminal(service, "Id")
        terminal.gets_a_key()
        terminal.registers()
        terminal.goes_quiet()
        service.site.operate("account", "remove", "Id")
        deadline = time.monotonic() + PATIENCE
        # A resolver apart is told of it a moment later.
        while service.apart and terminal.is_answered():
            assert time.monotonic() < deadline
        terminal.socket.send(terminal.datagram())
        terminal.hears_nothing()

    def test_when_it_moves_then_it_is_challenged(self, service: Service) -> None:
        """It is at another source then (D1)."""
        terminal = Terminal(service, "Ie")
        terminal.gets_a_key()
        terminal.registers()
        old = terminal.socket
        terminal.socket = udp(service.site, service.udp)
        terminal.registers()
        terminal.keeps_alive()
        old.send(terminal.datagram())
        terminal.socket = old
        assert "Challenge" in terminal.hears().fields


def test_when_a_resolver_restarts_then_terminals_need_no_new_login(site: Site) -> None:
    """It has forgotten everything: the mediator tells it the keys again."""
    service = start(site, apart=True)
    terminal = Terminal(service, "Ib")
    terminal.gets_a_key()
    terminal.registers()
    terminal.goes_quiet()
    (tcp,) = [line for line in service.resolver.out if "Listening on" in line]
    service.resolver.end()
    port = tcp.rpartition(":")[2]
    again = site.twistd(
        "broker-resolver",
        f"--listen=tcp:{port}:interface=127.0.0.1",
        f"--udp={service.udp}:127.0.0.1",
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


@pytest.mark.parametrize(
    "role", ["broker", pytest.param("broker-resolver", marks=pytest.mark.slow)]
)  # slow: the same listener as the mediator's
def test_when_the_port_is_in_use_then_a_role_does_not_start(site: Site, role: str) -> None:
    """One line, status 1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        running = site.twistd(role, "--listen=tcp:0:interface=127.0.0.1", f"--udp={port}:127.0.0.1")
        assert running.wait() == 1
    why = f"cannot listen on udp:{port}:127.0.0.1: Address already in use"
    assert running.err == [f"{role}: {why}"]


def test_when_the_port_is_of_ipv6_then_it_serves(site: Site) -> None:
    """Who asks for its address is told the one of IPv6."""
    running = site.serve("--udp=0:::1", "--store=memory:")
    asking = udp(site, int(running.wait_for(DATAGRAMS)[1]), "::1")
    asking.send(b"QUERY\r\nADDRESS\r\nPadding:" + b"x" * 100 + b"\r\n\r\n")
    mine = asking.getsockname()[1]
    assert asking.recv(2000) == f"NOTIFY\r\nAddress:::1\r\nPort:{mine}\r\n\r\n".encode()


class FloodTests:
    """What strangers can do by sending much (I12, I13, I14, I16)."""

    @pytest.mark.parametrize(
        "count",
        [FLOOD, pytest.param(LONG_FLOOD, marks=pytest.mark.slow)],  # slow: a million of them
    )
    def test_flood(self, site: Site, count: int) -> None:
        """Nothing moves, nothing is kept, no more comes back than went in; the terminals go on.

        Of their keepalives under one in a hundred stays without an answer meanwhile.
        """
        service = start(site)
        terminals = [Terminal(service, "Ib") for _ in range(5)]
        for terminal in terminals:
            terminal.gets_a_key("Accept:Create Ia")
            terminal.registers()
            terminal.keeps_alive()
            terminal.socket.setblocking(False)
        kinds = forgeries(terminals[0])
        strangers = [udp(site, service.udp) for _ in range(100)]
        for stranger in strangers:
            stranger.setblocking(False)
        process = psutil.Process(site.running.process.pid)
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
