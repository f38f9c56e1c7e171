"""Registration by UDP, the terminal's side, with the server's own part and a router in memory.

And the interval between keepalives: as long as mappings are seen to last.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from math import inf
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.messages.datagram import parse_datagram
from broker.messages.grammar import NOTIFY, QUERY, REGISTER
from broker.messages.message import Message
from broker.messages.signing import sign
from broker.messages.statements import ADDRESS, CONNECTION_REQUESTED, REGISTRATION_COMPLETED
from broker.resolver.udp_registrar import UdpRegistrar
from broker.tables.udp_keys import UdpKey
from broker.terminal.registration.keepalive_interval import (
    GROWTH,
    PRECISION,
    RETRY_AFTER,
    SHORTEST,
    KeepaliveInterval,
)
from broker.terminal.registration.udp_keepalive import CHALLENGES, REMEMBERED, REPEATS, Keepalive
from tests.support.clock import advance
from tests.support.reactor import FakeReactor

SERVER: Final = ("11.0.113.10", 1200)
#: Seconds that a datagram is on its path.
DELAY: Final = 0.01
SECRET: Final = b"s" * 32
KEY_ID: Final = "Kaaaaaaaaaaaaaaaaaaaaaa"
INTERVAL: Final = 25


class Path:
    """A terminal's keepalive, a router that remembers for a while, and the server.

    :ivar host: the router's address outside
    :ivar lasts: seconds of silence after which the router forgets
    :ivar keeps_port: whether it gives the terminal's own port to the outside
    :ivar cut: nothing goes through
    :ivar lose: says of each datagram, either way, whether it is lost
    :ivar said: what the terminal has sent, and when
    :ivar notices: when it was woken
    :ivar failures: when it gave up
    :ivar moves: what it was told of how it looks
    """

    def __init__(
        self, *, lasts: float = inf, keeps_port: bool = False, most: float = 300, interval: int = 25
    ) -> None:
        self.clock = FakeReactor()
        self.host = "11.0.113.1"
        self.lasts = lasts
        self.keeps_port = keeps_port
        self.cut = False
        self.lose: Callable[[bytes], bool] = lambda _: False
        self.said: list[tuple[float, Message]] = []
        self.notices: list[float] = []
        self.failures: list[float] = []
        self.moves: list[tuple[str, int]] = []
        self._outside = 0
        self._next_port = 61000
        self._passed = -inf
        self.registrar = UdpRegistrar(self.clock, random.Random(1).randbytes, wall=lambda: 1.0)
        self.resolver = self.clock.listenUDP(1200, self.registrar)
        self.resolver.write = self._back  # type: ignore[method-assign]
        self.interval = KeepaliveInterval(most)
        self.keepalive = Keepalive(
            self.clock, SERVER, self.interval, random.Random(2).randbytes, self
        )
        self.login(interval=interval)
        self.advance(1)

    def connection_requested(self) -> None:
        """The terminal was woken."""
        self.notices.append(self.clock.seconds())

    def keepalive_answered(self) -> None:
        """Seen by what follows."""

    def keepalive_failed(self) -> None:
        """It gave up."""
        self.failures.append(self.clock.seconds())

    def source_changed(self, host: str, port: int) -> None:
        """It was told how it looks."""
        self.moves.append((host, port))

    def login(self, name: str = KEY_ID, secret: bytes = SECRET, interval: int = INTERVAL) -> None:
        """The mediator has given out a key."""
        self.registrar.add_key(UdpKey(name, "Ib", secret, 1300, 3600))
        self.keepalive.use("Ib", name, secret, interval)
        self.port = self.clock.datagrams[1]
        self.port.write = self._out  # type: ignore[method-assign]
        while self.port.sent:  # what it has sent before we could look
            self._out(*self.port.sent.pop(0))

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        advance(self.clock, seconds)

    def restart_router(self, host: str = "11.0.113.1") -> None:
        """The router forgets its mappings, and may get another address."""
        self._passed = -inf
        self.host = host

    def restart_server(self) -> None:
        """The server forgets where it sees the terminal."""
        for key in list(self.registrar.keys):
            self.registrar.mappings.drop(key)

    def receive(self, datagram: bytes, source: tuple[str, int] = SERVER) -> None:
        """A datagram comes through to the terminal, whoever sent it."""
        self.port.receive(datagram, source)
        self.advance(DELAY)

    def notice(self, sequence: int = 10**6, key: bytes = SECRET, **fields: str) -> None:
        """A notice for Ib comes through."""
        self.receive(sign(a_notice(sequence, **fields), key))

    def answer(self, message: Message, ahead: int = 0, key: bytes = SECRET) -> None:
        """The newest registration is answered, or the one that would follow so many later."""
        sequence = int(self.registrations()[-1].fields["Sequence"]) + ahead
        message.fields["Sequence"] = str(sequence)
        self.receive(sign(message, key))

    def registrations(self) -> list[Message]:
        """What the terminal has sent of this kind."""
        return [message for _, message in self.said if message.verb == REGISTER]

    @property
    def stands(self) -> bool:
        """Whether it is registered, and both sides know at which address."""
        return self.keepalive.alive and self.keepalive.outside == self.seen() == self.moves[-1]

    def times(self) -> list[float]:
        """When it sent these."""
        return [round(when, 3) for when, message in self.said if message.verb == REGISTER]

    def seen(self) -> Any:
        """Where the server sees the terminal: address and port of its router."""
        key = self.registrar.keys.of("Ib", self.clock.seconds())[-1]
        mapping = self.registrar.mappings.of(key, self.clock.seconds())
        return None if mapping is None else mapping.source

    def _out(self, packet: bytes, addr: tuple[str, int]) -> None:
        assert addr == SERVER
        now = self.clock.seconds()
        self.said.append((now, parse_datagram(packet)))
        if self.cut or self.lose(packet):
            return
        if now - self._passed >= self.lasts or self._passed == -inf:
            self._next_port += 1
            self._outside = self.port.address.port if self.keeps_port else self._next_port
        self._passed = now
        source = (self.host, self._outside)
        self.clock.callLater(DELAY, self.registrar.datagramReceived, packet, source)

    def _back(self, packet: bytes, addr: tuple[str, int]) -> None:
        now = self.clock.seconds()
        known = addr == (self.host, self._outside) and now - self._passed < self.lasts
        if known and not self.cut and not self.lose(packet):
            self._passed = now
            self.clock.callLater(DELAY, self.port.receive, packet, SERVER)


def registered(*, keeps_port: bool = True) -> Path:
    """One whose keepalive was answered; nothing that was said before that counts."""
    path = Path(keeps_port=keeps_port)
    path.said.clear()
    return path


def waiting() -> Path:
    """One whose keepalive is under way and gets no answer."""
    path = registered()
    path.cut = True
    path.advance(INTERVAL)
    assert len(path.said) == 1
    return path


def asking() -> tuple[Path, Message]:
    """One behind a new mapping, whose query for its address is open; the answer is lost."""
    path = Path()
    path.lose = lambda packet: b"Address:" in packet
    path.restart_router()
    path.advance(INTERVAL)
    answer = Message(NOTIFY, Address="11.0.113.1", Port=61002)
    answer.fields["Transaction"] = path.said[-1][1].fields["Transaction"]
    return path, answer


def a_notice(sequence: int = 10**6, **fields: str) -> Message:
    """A notice for Ib."""
    values = {"Identifier": "Ib", "Key_ID": KEY_ID, "Sequence": str(sequence), **fields}
    return Message(NOTIFY, CONNECTION_REQUESTED, **values)


def completed(sequence: int = 0) -> Message:
    """A registration is answered."""
    return Message(NOTIFY, REGISTRATION_COMPLETED, Sequence=sequence)


class RegistrationTests:
    """D1, E1: the server learns where the terminal's datagrams come from, and keeps knowing it."""

    def test_registered(self) -> None:
        """It shows that it reads there, and is seen with its router's address and port (I12).

        It says who it is, by which key, and nothing of anyone else; the sequence rises.
        """
        path = Path()
        path.advance(2 * INTERVAL)
        assert path.stands
        assert (path.moves, path.keepalive.ignored) == ([("11.0.113.1", 61001)], {})
        first, second, *rest = path.registrations()
        assert list(first.fields) == ["Identifier", "Key ID", "Expires", "Sequence", "Signature"]
        assert "Challenge" in second.fields
        sequences = [int(message.fields["Sequence"]) for message in (first, second, *rest)]
        assert sequences == sorted(set(sequences))
        assert {message.fields["Expires"] for message in rest} <= {"75", "113"}
        # For a minute at least, however short the interval is.
        assert Path(most=2).registrations()[-1].get("Expires") == str(REMEMBERED)

    def test_one_datagram_an_interval(self) -> None:
        """It sends one datagram an interval, as the server suggests, and no more (E11)."""
        path = registered()
        path.advance(10 * INTERVAL)
        assert len(path.said) == 10
        gaps = [b - a for a, b in pairwise(path.times())]
        assert all(INTERVAL <= gap < INTERVAL + 1 for gap in gaps)

    @pytest.mark.parametrize(
        "happens",
        [
            # A router that gets another address is seen there from the next keepalive (D1).
            lambda path: path.restart_router("11.0.113.77"),
            # A server that has forgotten where it is asks it again.
            Path.restart_server,
        ],
    )
    def test_stands_again(self, happens: Callable[[Path], object]) -> None:
        """Within an interval it is registered, and that says nothing of how long mappings last."""
        path = Path()
        happens(path)
        path.advance(2 * INTERVAL)
        assert path.stands
        assert path.seen()[0] == path.host
        assert path.failures == []
        assert path.interval.seconds >= INTERVAL

    def test_new_key(self) -> None:
        """A new login's key replaces the old one at once, behind the same mapping.

        The sequence of the old key's notices says nothing of the new one's.
        """
        path = Path()
        path.notice(10**9)
        path.login("Kb", b"t" * 32)
        assert path.registrations()[-1].get("Key ID") == "Kb"
        path.notice()
        path.advance(1)
        assert path.stands
        assert path.seen() == ("11.0.113.1", 61001)
        assert len(path.clock.datagrams) == 2
        path.notice(10**10)
        assert len(path.notices) == 1
        path.notice(5, b"t" * 32, Key_ID="Kb")
        assert len(path.notices) == 2

    def test_repeats(self) -> None:
        """A datagram that is lost is repeated after a second; when the next is due stays."""
        path = registered()
        path.lose = lambda _: len(path.said) == 1
        path.advance(INTERVAL + 2)
        first, second = path.times()
        assert second - first == REPEATS[0]
        assert (path.failures, path.keepalive.alive) == ([], True)

    def test_fails_and_recovers(self) -> None:
        """Three without an answer, 1, 2 and 4 seconds apart, and it says that it has failed.

        It goes on trying, and is registered again once the network is back.
        """
        path = registered()
        path.cut = True
        path.advance(INTERVAL + 8)
        begun = path.times()[0]
        assert [round(when - begun, 3) for when in path.times()] == [0, 1, 3]
        assert [round(when - begun, 3) for when in path.failures] == [7]
        assert not path.keepalive.alive
        path.advance(10 * INTERVAL)
        assert len(path.failures) > 1
        path.cut = False
        path.restart_router()
        path.advance(2 * INTERVAL)
        assert path.stands

    def test_lossy(self) -> None:
        """With one of five datagrams lost, either way, it stays registered for an hour."""
        path = Path()
        drawn = random.Random(3)
        path.lose = lambda _: drawn.random() < 0.2
        for _ in range(360):
            path.advance(10)
            if path.failures:
                path.failures.clear()  # it is logged in again, with another key
                path.login(f"K{drawn.randbytes(11).hex()}", drawn.randbytes(32))
        path.lose = lambda _: False
        path.advance(300)
        assert path.stands

    def test_no_network(self) -> None:
        """A datagram that cannot even be sent counts as lost."""
        path = Path(keeps_port=True)

        def unreachable(packet: bytes, addr: object) -> None:
            raise OSError(101, "Network is unreachable")

        path.port.write = unreachable  # type: ignore[method-assign]
        path.advance(INTERVAL + 8)
        assert path.keepalive.ignored["not sent"] == len(REPEATS)
        assert len(path.failures) == 1

    def test_stop(self) -> None:
        """It closes its port and leaves no timer behind; what arrives late is ignored."""
        path, answer = asking()
        before = len(path.clock.getDelayedCalls())
        path.keepalive.stop()
        assert not path.port.listening
        assert len(path.clock.getDelayedCalls()) == before - 1
        assert not path.keepalive.alive
        said = len(path.said)
        path.notice()
        path.receive(answer.encode())  # read in the same turn
        path.advance(1000)
        assert (len(path.said), path.notices) == (said, [])

    def test_ipv6(self) -> None:
        """A server with an IPv6 address is sent datagrams from such a port."""
        clock = FakeReactor()
        server = ("2001:db8::10", 1200)
        keepalive = Keepalive(clock, server, KeepaliveInterval(), random.randbytes, Path())
        keepalive.use("Ib", KEY_ID, SECRET, INTERVAL)
        (port,) = clock.datagrams
        assert (port.address.host, port.sent[0][1]) == ("::", server)


class NoticeTests:
    """Fig. 10, E3, I26: what is for it and new wakes it; all else is ignored, and counted."""

    def test_woken(self) -> None:
        """Each notice wakes it, at once and once (E2, E11): an earlier one may have failed.

        It sends nothing in return: that it connects is answer enough.
        """
        path = registered()
        for _ in range(3):
            assert path.registrar.notify("Ib")
            path.advance(1)
        assert path.notices == [pytest.approx(when + DELAY) for when in (1, 2, 3)]
        assert path.said == []

    @pytest.mark.parametrize(
        ("why", "datagram"),
        [
            ("not signed with the key", sign(a_notice(), b"x" * 32)),
            ("not signed with the key", a_notice().encode()),
            ("not signed with the key", sign(a_notice(), SECRET).replace(b"Ib", b"Ic")),
            ("for another terminal", sign(a_notice(Identifier="Ic"), SECRET)),
            ("for another terminal", sign(a_notice(Key_ID="Kx"), SECRET)),
            ("old", sign(a_notice(10), SECRET)),  # the same notice again
            ("old", sign(a_notice(9), SECRET)),
            ("no message", b""),
            ("no message", b"\xff" * 1400),
            ("no message", sign(a_notice(), SECRET) * 2),
            ("no use for it", sign(Message(REGISTER, Identifier="Ib"), SECRET)),
            ("no use for it", Message(QUERY, ADDRESS).encode()),
            # Answers, and challenges, while nothing is under way.
            ("not asked for", sign(Message(NOTIFY, Challenge="c", Sequence=1), SECRET)),
            ("not asked for", sign(Message(NOTIFY, Challenge="c", Sequence=3), SECRET)),
            ("not asked for", sign(completed(3), SECRET)),
            ("not asked for", sign(Message(NOTIFY, "Something.", Sequence=3), SECRET)),
            ("not asked for", Message(NOTIFY, Address="11.0.113.9", Port=9).encode()),
            ("not asked for", Message(NOTIFY, Address="::9", Port=9, Transaction="x").encode()),
            # From another address or port than the server's, it is not even read.
            (("11.0.113.66", 1200), sign(a_notice(), SECRET)),
            ((SERVER[0], 1201), sign(a_notice(), SECRET)),
        ],
    )
    def test_ignored(self, why: Any, datagram: bytes) -> None:
        """It does nothing, sends nothing, and changes nothing, but counts it."""
        path = registered(keeps_port=False)
        path.notice(10)
        path.notices.clear()
        source, why = (SERVER, why) if isinstance(why, str) else (why, "not from the server")
        path.receive(datagram, source)
        assert (path.notices, path.said, path.keepalive.ignored) == ([], [], {why: 1})
        assert path.stands


class AnswerTests:
    """What of an answer is believed while a keepalive is under way."""

    @pytest.mark.parametrize(
        ("key", "ahead", "failures"),
        [(SECRET, 0, 0), (b"x" * 32, 0, 1), (SECRET, -1, 1), (SECRET, 1, 1)],
    )
    def test_believed(self, key: bytes, ahead: int, failures: int) -> None:
        """The right one is; one with another signature, or of another datagram, is not."""
        path = waiting()
        path.answer(completed(), ahead, key)
        path.advance(8)
        assert (len(path.failures), path.keepalive.ignored.total()) == (failures, failures)

    def test_challenged_for_ever(self) -> None:
        """However often its server challenges it, it answers a few times only (I13)."""
        path = waiting()
        for _ in range(50):
            path.answer(Message(NOTIFY, Challenge="c"))
        path.advance(8)
        assert len(path.said) == CHALLENGES + len(REPEATS)
        assert path.keepalive.ignored["challenged too often"] == 50 - CHALLENGES

    def test_source(self) -> None:
        """Where it is seen it takes from the answer to its own query alone, and once."""
        path, answer = asking()
        forged = Message(NOTIFY, Address="11.0.113.9", Port=9, Transaction="0" * 16)
        for datagram, port, ignored in ((forged, 61001, 1), (answer, 61002, 1), (answer, 61002, 2)):
            path.receive(datagram.encode())
            assert path.keepalive.outside == ("11.0.113.1", port)
            assert path.keepalive.ignored == {"not asked for": ignored}


def suggested(seconds: float, most: float) -> KeepaliveInterval:
    """An interval of which the server has suggested so much."""
    interval = KeepaliveInterval(most)
    interval.suggest(seconds)
    return interval


def played(interval: KeepaliveInterval, life: float, keepalives: int) -> list[float]:
    """The intervals of so many keepalives behind a router whose mappings live so long."""
    intervals = []
    for _ in range(keepalives):
        intervals.append(interval.seconds)
        interval.answered()
        if interval.seconds < life:
            interval.lasted(interval.seconds)
        else:
            interval.lost(interval.seconds)
    return intervals


class IntervalTests:
    """The interval follows what is seen of the mapping's life: few, and yet enough (E1, E11)."""

    @pytest.mark.parametrize(
        ("options", "seconds", "least", "most"),
        [
            # A router that forgets early makes it short: then the mapping never changes.
            ({"lasts": 4, "interval": 8}, 100, 2, 3.99),
            # One that remembers for long makes it long, and few datagrams are needed (E11).
            ({"lasts": 1000}, 3600, 300, 300),
            # Where the router keeps the port, a new mapping looks like the old: it is not guessed.
            ({"lasts": 40, "keeps_port": True}, 3600, INTERVAL, INTERVAL),
        ],
    )
    def test_found(
        self, options: dict[str, Any], seconds: float, least: float, most: float
    ) -> None:
        """After a while the interval fits the router; then no mapping is lost."""
        path = Path(**options)
        path.advance(seconds)
        assert least <= path.interval.seconds <= most
        moves = len(path.moves)
        path.said.clear()
        path.advance(seconds)
        assert (len(path.moves), path.failures) == (moves, [])
        assert len(path.said) <= seconds / least

    def test_repeated_prove_nothing(self) -> None:
        """An answer that came only to a repetition says nothing of the silence before it."""
        path = Path(most=100)
        path.lose = lambda _: path.said[-1][0] - path.said[-2][0] > 5  # the first one of each
        path.advance(INTERVAL * 10)
        assert (path.keepalive.alive, path.failures) == (True, [])
        assert path.interval.seconds == INTERVAL

    def test_restart_of_the_router(self) -> None:
        """A router's restart halves it, and it grows again."""
        path = Path(lasts=1000)
        path.advance(3600)
        path.restart_router()
        path.advance(310)
        assert path.interval.seconds == 150
        assert path.stands
        path.advance(1000)
        assert path.interval.seconds > 200

    @pytest.mark.parametrize(
        ("steps", "seconds"),
        [
            # It begins with what the server suggests, but never above its own limit.
            ([], 20),
            ([("suggest", 101)], 100),
            # Answers alone prove nothing of the way back: the suggestion stays.
            ([("answered",)] * 3 * RETRY_AFTER, 20),
            # A silence that was outlived makes it longer, up to the limit.
            ([("lasted", 20)], 20 * GROWTH),
            ([("lasted", 90)], 100),
            # One that was too long makes it as long as the longest that was not, or half as long.
            ([("lasted", 20), ("lost", 30)], 20),
            ([("lost", 20)], 10),
            # A notice after a silence that was taken to be too long says that it was not.
            ([("lasted", 20), ("lost", 30), ("lasted", 31)], 31 * GROWTH),
            # Where a silence does not last that did before, what was found out is void.
            ([("lasted", 60), ("lost", 60), ("lost", 20)], 10),
        ],
    )
    def test_learns(self, steps: list[tuple[Any, ...]], seconds: float) -> None:
        """What it is after what was seen of the mapping."""
        interval = suggested(20, 100)
        for name, *silence in steps:
            getattr(interval, name)(*silence)
        assert interval.seconds == seconds

    def test_forgiven(self) -> None:
        """What was too long is tried again after a while, and seldom."""
        intervals = played(suggested(25, 300), 40, 2 * RETRY_AFTER)
        tried = [index for index, seconds in enumerate(intervals) if seconds >= 40]
        early = [index for index in tried if index < 10]
        late = [index for index in tried if index >= RETRY_AFTER]
        assert 1 <= len(early) <= 2
        assert 1 <= len(late) <= 2
        assert tried == early + late
        assert max(intervals) < 60

    @given(st.floats(1.5, 3600), st.floats(5, 600), st.floats(1, 300))
    def test_finds(self, life: float, most: float, suggestion: float) -> None:
        """Whatever the router, it comes near the life of its mappings and stays below it."""
        interval = suggested(suggestion, most)
        played(interval, life, 60)
        rest = played(interval, life, 20)
        assert all(SHORTEST <= seconds <= most for seconds in rest)
        assert max(rest) < life
        assert min(rest) >= min(most, life * (1 - PRECISION)) * 0.95 - SHORTEST
