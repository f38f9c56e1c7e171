"""The roles' services in memory: what they open, in which order, and what they leave behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from broker.interfaces import Change, State, StoreFailed
from broker.service import stats_log as counting
from broker.service.errors import CannotStart
from broker.service.settings.options import RoleOptions
from broker.service.stats_log import CountLog
from broker.tables.permits import PermitChange
from tests.service.scene import (
    EXPOSED,
    MEDIATOR,
    REGISTERED,
    RESOLVER,
    TERMINAL,
    RefusingReactor,
    Scene,
    a_file,
    a_mediator,
)
from tests.support.clock import advance

IB = "REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nAccept:Create Ia\n\n"
#: Contents of a file that are no secret.
NO_SECRETS = (b"", b"\n", b"two\nlines\n", b"\xff\n", b"x" * 600)


class Store:
    """A store that loads when a test says so."""

    def __init__(self) -> None:
        self.loading: Deferred[State] = Deferred()

    def load(self) -> Deferred[State]:
        """All there is."""
        return self.loading

    async def commit(self, changes: Sequence[Change]) -> None:
        """Keep nothing."""


@pytest.mark.parametrize(
    ("role", "refused", "port"),
    [
        (MEDIATOR, 1202, "tcp:1202:interface=127.0.0.1"),
        (RESOLVER, 1200, "tcp:1200:interface=127.0.0.1"),
        (TERMINAL, 1203, "tcp:1203"),
    ],
)
def test_a_port_in_use(role: type[RoleOptions], refused: int, port: str) -> None:
    """A port that can't be opened is why a role doesn't start, in a line that names it; it keeps
    no other port, and doesn't even connect.
    """
    listens = [f"--listen=tcp:{n}:interface=127.0.0.1" for n in (1201, 1202)]
    arguments = listens if role is MEDIATOR else []
    scene = Scene(role, *arguments, reactor=RefusingReactor(refused), started=False)
    with pytest.raises(CannotStart, match=rf"\Acannot listen on {port}: Address already in use\Z"):
        scene.start()
    assert scene.reactor.dials == []
    if role is MEDIATOR:
        assert scene.service.listening.ports == set()


@pytest.mark.parametrize("content", [None, *NO_SECRETS, *EXPOSED])
@pytest.mark.parametrize("arguments", [["--resolver=tcp:127.0.0.1:1200"], None])
def test_no_secret(
    tmp_path: Path, arguments: list[str] | None, content: bytes | int | None
) -> None:
    """A secret that is missing, that others can read (I18), or that is none is why neither a
    mediator nor a resolver starts (I3).
    """
    path, why = tmp_path / "secret", "No such file or directory"
    if isinstance(content, int):
        a_file(path, mode=content)
        why = f"others can read or change it: chmod 600 {path}"
    elif content is not None:
        a_file(path, content)
        why = "holds no secret"
    secret = f"--mediator-secret={path}"
    role = RESOLVER if arguments is None else MEDIATOR
    with pytest.raises(CannotStart, match=f"^{path}: {why}"):
        Scene(role, secret, *(arguments or []))


class MediatorServiceTests:
    """``twistd broker``."""

    def test_serves(self) -> None:
        """It listens where it is told, and serves there; its own ports are never taken for a
        terminal's address (I12).
        """
        scene = a_mediator(
            "--listen=tcp:1201:interface=127.0.0.1", r"--listen=tcp:1205:interface=\:\:1"
        )
        listening = [(port, interface) for port, _, _, interface in scene.reactor.tcpServers]
        assert listening == [(1201, "127.0.0.1"), (1205, "::1")]
        assert scene.answer("REGISTER\nIdentifier:Ia\nAccept:Create Ib\n\n") == REGISTERED
        own = scene.answer("REGISTER\nIdentifier:Ia\nAddress:127.0.0.1\nPort:1201\n\n")
        assert "the address is the server's own" in own

    def test_loads_before_it_listens(self) -> None:
        """No request is answered until the tables are filled (I3)."""
        store = Store()
        scene = a_mediator(store=store)
        assert scene.ports == []
        store.loading.callback(State("e1", [PermitChange("Ib", ("Ia",))]))
        permits = scene.answer("QUERY\nPERMITS\nIdentifier:Ib\n\n")
        assert permits == "NOTIFY\nAccept:Create Ia\n\n"

    def test_a_store_that_fails(self) -> None:
        """A store that can't be loaded is why it doesn't start; it listens nowhere (I3)."""
        store = Store()
        store.loading.errback(StoreFailed("the store is damaged"))
        scene = a_mediator(store=store, started=False)
        with pytest.raises(CannotStart, match=r"\Athe store is damaged\Z"):
            scene.start()
        assert scene.ports == []

    def test_options_reach_the_mediator(self) -> None:
        """Uniform causes, no status, and networks are as the options say."""
        scene = a_mediator("--causes=uniform", "--no-status", "--allow-address=192.0.2.0/24")
        ib, ia = scene.client(), scene.client()
        ib.type("REGISTER\nIdentifier:Ib\nAddress:192.0.2.1\nAccept:Create Ia\n\n")
        assert ib.text() == REGISTERED
        ia.type("QUERY\nIdentifier:Ia\nCallee:Ib\n\n")
        assert ia.text().startswith("NOTIFY\nRequest Accepted.\n\nNOTIFY\nCallee Address:192.0.2.1")
        ib.type("REGISTER\nExpires:0\n\n")
        ia.type("QUERY\nIdentifier:Ia\nCallee:Ib\n\n")
        assert ia.text() == "NOTIFY\nPermission Denied.\n\n"

    def test_status_timeout(self) -> None:
        """A callee that says nothing is given as long as the options say."""
        scene = a_mediator("--status-timeout=2")
        ib, ia = scene.client(), scene.client()
        ib.type(IB)
        ia.type("QUERY\nIdentifier:Ia\nCallee:Ib\n\n")
        scene.advance(1.9)
        assert ia.text() == ""
        scene.advance(0.2)
        assert ia.text() == "NOTIFY\nCallee not Connected.\n\n"

    def test_leaves_nothing_behind(self) -> None:
        """Stopped, it has closed its connections and left no timer."""
        scene = a_mediator()
        peer, gone = scene.client(), scene.client()
        gone.type(IB)
        gone.vanish()
        peer.type("REGISTER\nIdentifier:Ia\nAddress:127.0.0.1\n\nQUERY\nCallee:Ib\n\n")
        (dial,) = scene.reactor.dials  # under way
        scene.stops(peer)
        assert dial.over
        assert scene.service.listening.ports == set()

    def test_a_resolver_apart(self, tmp_path: Path) -> None:
        """With ``--resolver`` it asks there, and shows the secret it shares (A15)."""
        secret = f"--mediator-secret={a_file(tmp_path / 'secret')}"
        scene = a_mediator("--resolver=tcp:127.0.0.1:1200", secret)
        (dial,) = scene.reactor.dials
        assert (dial.host, dial.port) == ("127.0.0.1", 1200)
        link = scene.line()
        assert link.text() == "REGISTER\nRole:Mediator\nPassword:correct horse\nTransaction:1\n\n"
        scene.stops(link)


class ResolverServiceTests:
    """``twistd broker-resolver``."""

    def test_serves(self) -> None:
        """It takes terminals' addresses, and tells them to mediators alone (A7, A8). Stopped, it
        has closed its connections and left no timer.
        """
        scene = Scene(RESOLVER)
        ib, link = scene.client(), scene.client()
        ib.type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nPort:1203\n\n")
        assert ib.text() == REGISTERED
        link.type("REGISTER\nRole:Mediator\n\nQUERY\nLOOKUP\nCallee:Ib\nTransaction:1\n\n")
        assert "Callee Address:127.0.0.1\n" in link.text()
        scene.stops(ib, link)


class CountLogTests:
    """The operator's line of counts."""

    @pytest.mark.parametrize(
        ("happenings", "lines"),
        [
            pytest.param(
                ("b", "a", 301, 300, "a", 300, "c"),
                ["a 1, b 1", "a 2, b 1", "a 2, b 1, c 1"],
                id="each five minutes in which something has changed, and at the end",
            ),
            pytest.param((1000,), [], id="nothing happened"),
            pytest.param(("a", 301), ["a 1"], id="what was told is not told again at the end"),
        ],
    )
    def test_lines(self, happenings: Sequence[str | float], lines: list[str]) -> None:
        """The lines that come of outcomes (words) and of time passing (numbers), then the end."""
        assert counting.INTERVAL == 300
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
        assert [formatEvent(event) for event in events] == [
            f"Since the start: {line}" for line in lines
        ]


class TraceTests:
    """The trace of messages."""

    def test_calls(self) -> None:
        """With ``--trace`` each message is a line, its secrets masked (I18)."""
        scene = a_mediator("--trace", "--no-status")
        ib, ia = scene.client(), scene.client()
        with capturedLogs() as events:
            ib.type(IB)
            ia.type("REGISTER\nIdentifier:Ia\n\nQUERY\nIdentifier:Ia\nCallee:Ib\n\n")
        lines = [formatEvent(event) for event in events]
        address = f"127.0.0.1:{ib.transport.peer.port}"  # type: ignore[union-attr]
        assert [*lines[:2], *lines[4:6]] == [
            f"{address} < REGISTER / Identifier:Ib / Address:127.0.0.1 / Accept:Create Ia",
            "Ib > NOTIFY / Registration Completed.",
            "Ia < QUERY / Identifier:Ia / Callee:Ib",
            "Ia > NOTIFY / Request Accepted.",
        ]
        assert lines[6].startswith("Ib > NOTIFY / Caller ID:Ia / Password:… / Encrypt Key:… / ")
        assert "Reply Password:…" in lines[7]
        assert len(lines) == 8

    @pytest.mark.parametrize(
        ("arguments", "text", "lines"),
        [
            pytest.param([], "REGISTER\nIdentifier:Ib\n\n", [], id="not traced"),
            pytest.param(
                ["--trace"],
                "NOTIFY\nx\u2028y\u202ez\nCause:\u0085 {Ia}\n\n",
                [r"[::1]:9 < NOTIFY / x\u2028y\u202ez / Cause:\u0085 {Ia}"],
                id="a peer's text makes no line and no escape of its own (I19)",
            ),
            pytest.param(
                ["--trace"],
                "REGISTER\nIdentifier:I\u5c71\n\n",
                [
                    "[::1]:9 < REGISTER / Identifier:I\u5c71",
                    "I\u5c71 > NOTIFY / Registration Completed.",
                ],
                id="named by its address, in brackets where that has colons, until it is bound",
            ),
        ],
    )
    def test_lines(self, arguments: list[str], text: str, lines: list[str]) -> None:
        """What is in order is no line without ``--trace``; names and texts are harmless (I19)."""
        peer = a_mediator(*arguments).client(peer_host="::1", peer_port=9)
        with capturedLogs() as events:
            peer.type(text)
        assert [formatEvent(event) for event in events] == lines
