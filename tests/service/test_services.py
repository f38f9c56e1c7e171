"""The roles' services in memory: what they open, in which order, and what they leave behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, execute
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from broker.interfaces import Change, State, StoreFailed
from broker.service import mediator, resolver, terminal
from broker.service import stats_log as counting
from broker.service.errors import CannotStart
from broker.service.settings.credentials import Keyring
from broker.service.settings.options import RoleOptions
from broker.service.stats_log import CountLog
from broker.store.memory import MemoryStore
from broker.tables.permits import PermitChange
from tests.support.clock import advance, settle
from tests.support.reactor import FakeReactor
from tests.support.server import cheap_passwords
from tests.support.transport import Client, connect

#: Modes of a file that others can read or change, and contents that are no secret.
EXPOSED = (0o640, 0o604, 0o620, 0o602)
NO_SECRETS = (b"", b"\n", b"two\nlines\n", b"\xff\n", b"x" * 600)

Service = mediator.MediatorService | resolver.ResolverService | terminal.TerminalService


def options_of(role: type[RoleOptions], *arguments: str) -> Any:
    """A role's options."""
    options = role()
    said = any(argument.startswith(("--udp", "--resolver")) for argument in arguments)
    if role is not terminal.Options and not said:
        arguments = ("--udp=none", *arguments)  # whose port would be a real one
    options.parseOptions(list(arguments))
    return options


class Store:
    """A store that loads when a test says so."""

    def __init__(self, permits: Sequence[PermitChange] = ()) -> None:
        self.loading: Deferred[State] = Deferred()
        self.state = State("e1", permits)

    def load(self) -> Deferred[State]:
        """All there is."""
        return self.loading

    async def commit(self, changes: Sequence[Change]) -> None:
        """Keep nothing."""


def a_mediator(
    *arguments: str, reactor: FakeReactor | None = None, store: Any = None
) -> mediator.MediatorService:
    """A mediator's service, not started."""
    options = options_of(mediator.Options, "--auth=none", *arguments)
    return mediator.MediatorService(
        reactor or FakeReactor(),
        options,
        store or MemoryStore(lambda count: b"r" * count),
        passwords=cheap_passwords(),
    )


def a_secret(folder: Path, content: bytes = b"correct horse\n") -> Path:
    """The file of a secret that a mediator and a resolver share."""
    path = folder / "secret"
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def start(service: Service) -> None:
    """Start a service as twistd does."""
    service.privilegedStartService()
    service.startService()


def client(reactor: FakeReactor, index: int = 0) -> Client:
    """A connection to one of the ports."""
    port, factory, _, interface = reactor.tcpServers[index]
    return connect(factory, reactor, port=port, host=interface or "127.0.0.1")


class RefusingReactor(FakeReactor):
    """A reactor one of whose ports is in use."""

    def __init__(self, refused: int) -> None:
        super().__init__()
        self.refused = refused

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        if port == self.refused:
            raise CannotListenError(interface, port, OSError(98, "Address already in use"))
        return super().listenTCP(port, factory, backlog, interface)  # type: ignore[no-untyped-call]


class MediatorServiceTests:
    """``twistd broker``."""

    def test_serves(self) -> None:
        """It listens where it is told, and serves there."""
        reactor = FakeReactor()
        service = a_mediator(
            "--listen=tcp:1201:interface=127.0.0.1",
            r"--listen=tcp:1205:interface=\:\:1",
            reactor=reactor,
        )
        start(service)
        assert [(port, interface) for port, _, _, interface in reactor.tcpServers] == [
            (1201, "127.0.0.1"),
            (1205, "::1"),
        ]
        peer = client(reactor)
        peer.type("REGISTER\nIdentifier:Ia\nAccept:Create Ib\n\n")
        assert peer.text() == "NOTIFY\nRegistration Completed.\n\n"

    def test_loads_before_it_listens(self) -> None:
        """No request is answered until the tables are filled (I3)."""
        reactor = FakeReactor()
        store = Store([PermitChange("Ib", ("Ia",))])
        service = a_mediator(reactor=reactor, store=store)
        start(service)
        assert reactor.tcpServers == []
        store.loading.callback(store.state)
        peer = client(reactor)
        peer.type("QUERY\nPERMITS\nIdentifier:Ib\n\n")
        assert peer.text() == "NOTIFY\nAccept:Create Ia\n\n"

    def test_a_store_that_fails(self) -> None:
        """A store that can't be loaded is why it doesn't start; it listens nowhere (I3)."""
        reactor = FakeReactor()
        store = Store()
        store.loading.errback(StoreFailed("the store is damaged"))
        with pytest.raises(CannotStart, match=r"\Athe store is damaged\Z"):
            start(a_mediator(reactor=reactor, store=store))
        assert reactor.tcpServers == []

    def test_a_port_in_use(self) -> None:
        """A port that can't be opened is why it doesn't start, in a line that names it."""
        service = a_mediator(
            "--listen=tcp:1201:interface=127.0.0.1",
            "--listen=tcp:1202:interface=127.0.0.1",
            reactor=RefusingReactor(1202),
        )
        expected = r"\Acannot listen on tcp:1202:interface=127.0.0.1: Address already in use\Z"
        with pytest.raises(CannotStart, match=expected):
            service.privilegedStartService()
        assert service.listening.ports == set()

    def test_own_ports_are_no_terminals(self) -> None:
        """Its own ports are never taken for a terminal's address (I12)."""
        reactor = FakeReactor()
        start(a_mediator(reactor=reactor))
        peer = client(reactor)
        peer.type("REGISTER\nIdentifier:Ia\nAddress:127.0.0.1\nPort:1201\n\n")
        assert "the address is the server's own" in peer.text()

    def test_options_reach_the_mediator(self) -> None:
        """Uniform causes, no status, the login's timeout and networks are as the options say."""
        reactor = FakeReactor()
        start(
            a_mediator(
                *("--causes=uniform", "--no-status", "--login-timeout=7"),
                "--allow-address=192.0.2.0/24",
                reactor=reactor,
            )
        )
        ib, ia, silent = client(reactor), client(reactor), client(reactor)
        ib.type("REGISTER\nIdentifier:Ib\nAddress:192.0.2.1\nAccept:Create Ia\n\n")
        assert ib.text() == "NOTIFY\nRegistration Completed.\n\n"
        ia.type("QUERY\nIdentifier:Ia\nCallee:Ib\n\n")
        assert ia.text().startswith("NOTIFY\nRequest Accepted.\n\nNOTIFY\nCallee Address:192.0.2.1")
        ib.type("REGISTER\nExpires:0\n\n")
        ia.type("QUERY\nIdentifier:Ia\nCallee:Ib\n\n")
        assert ia.text() == "NOTIFY\nPermission Denied.\n\n"
        advance(reactor, 6.9)
        assert not silent.closed
        advance(reactor, 0.2)
        assert silent.closed

    def test_status_timeout(self) -> None:
        """A callee that says nothing is given as long as the options say."""
        reactor = FakeReactor()
        start(a_mediator("--status-timeout=2", reactor=reactor))
        ib, ia = client(reactor), client(reactor)
        ib.type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nAccept:Create Ia\n\n")
        ia.type("QUERY\nIdentifier:Ia\nCallee:Ib\n\n")
        advance(reactor, 1.9)
        assert ia.text() == ""
        advance(reactor, 0.2)
        assert ia.text() == "NOTIFY\nCallee not Connected.\n\n"

    def test_leaves_nothing_behind(self) -> None:
        """Stopped, it has closed its connections and left no timer."""
        reactor = FakeReactor()
        service = a_mediator(reactor=reactor)
        start(service)
        peer, gone = client(reactor), client(reactor)
        gone.type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nAccept:Create Ia\n\n")
        gone.vanish()
        peer.type("REGISTER\nIdentifier:Ia\nAddress:127.0.0.1\n\nQUERY\nCallee:Ib\n\n")
        (dial,) = reactor.dials  # under way
        service.stopService()
        settle(reactor)
        assert peer.closed
        assert dial.over
        assert service.listening.ports == set()
        assert reactor.getDelayedCalls() == []

    def test_a_resolver_apart(self, tmp_path: Path) -> None:
        """With ``--resolver`` it asks there, and shows the secret it shares (A15)."""
        secret = a_secret(tmp_path)
        reactor = FakeReactor()
        service = a_mediator(
            "--resolver=tcp:127.0.0.1:1200", f"--mediator-secret={secret}", reactor=reactor
        )
        start(service)
        (dial,) = reactor.dials
        assert (dial.host, dial.port) == ("127.0.0.1", 1200)
        link = dial.accept()
        assert link.text() == ("REGISTER\nRole:Mediator\nPassword:correct horse\nTransaction:1\n\n")
        service.stopService()
        settle(reactor)
        assert link.closed
        assert reactor.getDelayedCalls() == []

    @pytest.mark.parametrize(
        ("content", "mode", "why"),
        [
            (None, 0, "No such file or directory"),
            *((b"secret\n", mode, "others can read or change it: chmod 600 ") for mode in EXPOSED),
            *((content, 0o600, "holds no secret") for content in NO_SECRETS),
        ],
    )
    def test_no_secret(self, tmp_path: Path, content: bytes | None, mode: int, why: str) -> None:
        """A secret that is missing, that others can read (I18), or that is none is why neither a
        mediator nor a resolver starts (I3).
        """
        path = tmp_path / "secret"
        if content is not None:
            path.write_bytes(content)
            path.chmod(mode)
        secret = f"--mediator-secret={path}"
        services = (
            lambda: a_mediator("--resolver=tcp:127.0.0.1:1200", secret),
            lambda: resolver.ResolverService(FakeReactor(), options_of(resolver.Options, secret)),
        )
        for make in services:
            with pytest.raises(CannotStart, match=f"^{path}: {why}"):
                make().privilegedStartService()

    def test_traced(self) -> None:
        """With ``--trace`` each message is a line, its secrets masked (I18)."""
        reactor = FakeReactor()
        start(a_mediator("--trace", "--no-status", reactor=reactor))
        ib, ia = client(reactor), client(reactor)
        with capturedLogs() as events:
            ib.type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nAccept:Create Ia\n\n")
            ia.type("REGISTER\nIdentifier:Ia\n\nQUERY\nIdentifier:Ia\nCallee:Ib\n\n")
        lines = [formatEvent(event) for event in events]
        address = f"127.0.0.1:{ib.transport.peer.port}"  # type: ignore[union-attr]
        assert lines[:2] == [
            f"{address} < REGISTER / Identifier:Ib / Address:127.0.0.1 / Accept:Create Ia",
            "Ib > NOTIFY / Registration Completed.",
        ]
        assert lines[4:6] == [
            "Ia < QUERY / Identifier:Ia / Callee:Ib",
            "Ia > NOTIFY / Request Accepted.",
        ]
        assert lines[6].startswith("Ib > NOTIFY / Caller ID:Ia / Password:… / Encrypt Key:… / ")
        assert "Reply Password:…" in lines[7]
        assert len(lines) == 8

    def test_not_traced(self) -> None:
        """Without it, nothing is said of what is in order."""
        reactor = FakeReactor()
        start(a_mediator(reactor=reactor))
        with capturedLogs() as events:
            client(reactor).type("REGISTER\nIdentifier:Ib\n\n")
        assert events == []


class ResolverServiceTests:
    """``twistd broker-resolver``."""

    def a_resolver(self, reactor: FakeReactor, *arguments: str) -> resolver.ResolverService:
        """A resolver's service, started."""
        service = resolver.ResolverService(reactor, options_of(resolver.Options, *arguments))
        start(service)
        return service

    def test_serves(self) -> None:
        """It takes terminals' addresses, and tells them to mediators alone (A7, A8)."""
        reactor = FakeReactor()
        self.a_resolver(reactor)
        ib, link = client(reactor), client(reactor)
        ib.type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nPort:1203\n\n")
        assert ib.text() == "NOTIFY\nRegistration Completed.\n\n"
        link.type("REGISTER\nRole:Mediator\n\nQUERY\nLOOKUP\nCallee:Ib\nTransaction:1\n\n")
        assert "Callee Address:127.0.0.1\n" in link.text()

    def test_wants_the_secret(self, tmp_path: Path) -> None:
        """With a secret, who doesn't show it is no mediator."""
        path = a_secret(tmp_path)
        reactor = FakeReactor()
        self.a_resolver(reactor, f"--mediator-secret={path}")
        wrong, right = client(reactor), client(reactor)
        wrong.type("REGISTER\nRole:Mediator\nPassword:x\n\n")
        assert "Permission Denied." in wrong.text()
        right.type("REGISTER\nRole:Mediator\nPassword:correct horse\n\n")
        assert right.text() == "NOTIFY\nRegistration Completed.\n\n"

    def test_a_port_in_use(self) -> None:
        """A port that can't be opened is why it doesn't start."""
        with pytest.raises(CannotStart, match="cannot listen on tcp:1200"):
            self.a_resolver(RefusingReactor(1200))

    def test_leaves_nothing_behind(self) -> None:
        """Stopped, it has closed its connections and left no timer."""
        reactor = FakeReactor()
        service = self.a_resolver(reactor)
        peer = client(reactor)
        peer.type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\n\n")
        service.stopService()
        settle(reactor)
        assert peer.closed
        assert reactor.getDelayedCalls() == []


class TerminalServiceTests:
    """``twistd broker-terminal``."""

    def a_terminal(self, reactor: FakeReactor, *arguments: str) -> terminal.TerminalService:
        """A terminal's service, not started."""
        options = options_of(terminal.Options, "--identifier=Ib", *arguments)
        return terminal.TerminalService(reactor, options, execute)

    def test_registers(self) -> None:
        """It listens, connects to its mediator, and registers its address and its permits."""
        reactor = FakeReactor()
        start(self.a_terminal(reactor, "--listen=tcp:1210", "--accept=Ia", "--accept=Ic"))
        assert [port for port, *_ in reactor.tcpServers] == [1210]
        (dial,) = reactor.dials
        assert (dial.host, dial.port) == ("127.0.0.1", 1201)
        line = dial.accept(local_host="127.0.0.9")
        assert line.text() == (
            "REGISTER\nIdentifier:Ib\nAddress:127.0.0.9\nPort:1210\nTransaction:1\n\n"
        )
        line.type("NOTIFY\nRegistration Completed.\nEpoch:e1\nTransaction:1\nCode:200\n\n")
        assert "Accept:Add Ia,Ic\n" in line.text()

    def test_address(self) -> None:
        """``--address`` is what it registers."""
        reactor = FakeReactor()
        start(self.a_terminal(reactor, "--address=192.0.2.7"))
        assert "Address:192.0.2.7\nPort:1203\n" in reactor.dials[0].accept().text()

    @pytest.mark.parametrize(
        ("receive", "status"), [(True, "STATUS Acceptable."), (False, "STATUS Busy.")]
    )
    def test_status(self, tmp_path: Path, receive: bool, status: str) -> None:
        """With a folder to receive in it takes calls; without it takes none (A13)."""
        reactor = FakeReactor()
        start(self.a_terminal(reactor, *([f"--receive={tmp_path}"] if receive else [])))
        line = reactor.dials[0].accept()
        line.text()
        line.type("NOTIFY\nRegistration Completed.\nEpoch:e1\nTransaction:1\nCode:200\n\n")
        line.type("QUERY\nSTATUS\n\n")
        assert line.text() == f"NOTIFY\n{status}\n\n"

    def test_a_port_in_use(self) -> None:
        """A port that can't be opened is why it doesn't start; it doesn't even connect."""
        reactor = RefusingReactor(1203)
        with pytest.raises(CannotStart, match=r"\Acannot listen on tcp:1203: Address already"):
            start(self.a_terminal(reactor))
        assert reactor.dials == []

    def test_clear_text_is_told(self) -> None:
        """A mediator on another machine is told of in the log: it is spoken to in clear (I25)."""
        with capturedLogs() as events:
            elsewhere = "--mediator=tcp:192.0.2.1:1201"
            start(self.a_terminal(FakeReactor(), elsewhere, "--allow-clear-text"))
        assert "tcp:192.0.2.1:1201 are not encrypted" in formatEvent(events[0])

    def shown(self, *arguments: str) -> str | None:
        """The password that is shown to the mediator."""
        reactor = FakeReactor()
        start(self.a_terminal(reactor, *arguments))
        (message,) = reactor.dials[0].accept().received()
        return message.get("Password")

    def test_password_file(self, tmp_path: Path) -> None:
        """``--password-file`` is what it logs in with (A19)."""
        path = tmp_path / "password"
        path.write_text("correct horse\n")
        path.chmod(0o600)
        assert self.shown(f"--password-file={path}") == "correct horse"
        path.chmod(0o640)
        with pytest.raises(SystemExit) as given_up:
            self.a_terminal(FakeReactor(), f"--password-file={path}")
        assert str(given_up.value.code).endswith(f"can read or change it: chmod 600 {path}")

    def test_kept_password(self, no_passwords_of_ours: Path) -> None:
        """Else it is what ``broker login`` keeps, for that mediator alone (A19, I26)."""
        keyring = Keyring(no_passwords_of_ours / "broker")
        path = keyring.keep("Ib", "tcp:127.0.0.1:1201", "kept")
        keyring.keep("Ia", "tcp:127.0.0.1:1201", "another's")
        assert self.shown() == "kept"
        assert self.shown("--mediator=tcp:127.0.0.1:1299") is None
        path.chmod(0o640)
        with pytest.raises(SystemExit) as given_up:
            self.a_terminal(FakeReactor())
        assert str(given_up.value.code).startswith(f"broker-terminal: {path}: others can read")

    def test_clear_text_is_refused(self) -> None:
        """A mediator on another machine must be called over TLS, unless it is allowed (I25)."""
        with pytest.raises(SystemExit) as given_up:
            self.a_terminal(FakeReactor(), "--mediator=tcp:192.0.2.1:1201")
        assert "would go there in clear text" in str(given_up.value.code)
        for server in ("tcp:localhost:1201", "tls:192.0.2.1:1202", r"tcp:\:\:1:1201"):
            self.a_terminal(FakeReactor(), f"--mediator={server}")

    def test_leaves_nothing_behind(self, tmp_path: Path) -> None:
        """Stopped, it has closed its connection and left no timer, the load's included."""
        reactor = FakeReactor()
        service = self.a_terminal(reactor, f"--receive={tmp_path}", "--max-load=50")
        start(service)
        line = reactor.dials[0].accept()
        advance(reactor, 3)
        service.stopService()
        settle(reactor)
        assert line.closed
        assert reactor.getDelayedCalls() == []


class CountLogTests:
    """The operator's line of counts."""

    def run(self, *happenings: str | float) -> list[str]:
        """The lines that come of outcomes (words) and of time passing (numbers), then the end."""
        clock = Clock()
        counts: Counter[str] = Counter()
        log = CountLog(clock, counts)
        with capturedLogs() as events:
            log.start()
            for happening in happenings:
                if isinstance(happening, str):
                    counts[happening] += 1
                else:
                    advance(clock, happening)
            log.stop()
        assert clock.getDelayedCalls() == []
        return [formatEvent(event) for event in events]

    def test_now_and_then(self) -> None:
        """A line every five minutes in which something has changed, and one at the end."""
        assert counting.INTERVAL == 300
        assert self.run("b", "a", 301, 300, "a", 300, "c") == [
            "Since the start: a 1, b 1",
            "Since the start: a 2, b 1",
            "Since the start: a 2, b 1, c 1",
        ]

    def test_nothing_to_say(self) -> None:
        """Where nothing happened nothing is said."""
        assert self.run(1000) == []

    def test_not_twice(self) -> None:
        """What was told is not told again at the end."""
        assert self.run("a", 301) == ["Since the start: a 1"]


class TraceTests:
    """The trace of messages."""

    def test_no_line_of_a_peers_own(self) -> None:
        """A peer's text makes no line and no escape of its own in the trace (I19)."""
        reactor = FakeReactor()
        start(a_mediator("--trace", reactor=reactor))
        peer = client(reactor)
        with capturedLogs() as events:
            peer.type("NOTIFY\nx\u2028y\u202ez\nCause:\u0085 {Ia}\n\n")
        (line,) = [formatEvent(event) for event in events]
        assert line.endswith(r" < NOTIFY / x\u2028y\u202ez / Cause:\u0085 {Ia}")

    def test_names(self) -> None:
        """A peer is called by its address, in brackets where that has colons, until it is bound."""
        reactor = FakeReactor()
        start(a_mediator("--trace", reactor=reactor))
        _, factory, *_ = reactor.tcpServers[0]
        peer = connect(factory, reactor, peer_host="::1", peer_port=9)
        with capturedLogs() as events:
            peer.type("REGISTER\nIdentifier:I\u5c71\n\n")
        assert [formatEvent(event) for event in events] == [
            "[::1]:9 < REGISTER / Identifier:I\u5c71",
            "I\u5c71 > NOTIFY / Registration Completed.",
        ]
