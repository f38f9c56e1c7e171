"""Registration by UDP, the terminal's side, with the server's own part and a router in memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import inf
from typing import Any, Final

import pytest

from broker.messages.datagram import parse_datagram
from broker.messages.grammar import NOTIFY, QUERY, REGISTER
from broker.messages.message import Message
from broker.messages.signing import sign
from broker.messages.statements import (
    ADDRESS,
    CONNECTION_REQUESTED,
    REGISTRATION_COMPLETED,
)
from broker.resolver.udp_registrar import UdpRegistrar
from broker.tables.udp_keys import UdpKey
from broker.terminal.registration.keepalive_interval import KeepaliveInterval
from broker.terminal.registration.udp_keepalive import CHALLENGES, REMEMBERED, REPEATS, Keepalive
from tests.support.clock import advance
from tests.support.reactor import FakeReactor

SERVER: Final = ("11.0.113.10", 1200)
ELSEWHERE: Final = ("11.0.113.66", 1200)
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
            self.clock,
            SERVER,
            self.interval,
            random.Random(2).randbytes,
            self,
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

    def forget(self) -> None:
        """The router begins anew."""
        self._passed = -inf

    def receive(self, datagram: bytes, source: tuple[str, int] = SERVER) -> None:
        """A datagram comes through to the terminal, whoever sent it."""
        self.port.receive(datagram, source)
        self.advance(DELAY)

    def notice(self, sequence: int = 10**6, key: bytes = SECRET, **fields: str) -> None:
        """A notice for Ib comes through."""
        self.receive(sign(a_notice(sequence, **fields), key))

    def registrations(self) -> list[Message]:
        """What the terminal has sent of this kind."""
        return [message for _, message in self.said if message.verb == REGISTER]

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


def a_notice(sequence: int = 10**6, **fields: str) -> Message:
    """A notice for Ib."""
    values = {"Identifier": "Ib", "Key_ID": KEY_ID, "Sequence": str(sequence), **fields}
    return Message(NOTIFY, CONNECTION_REQUESTED, **values)


class RegistrationTests:
    """D1, E1: the server learns where the terminal's datagrams come from, and keeps knowing it."""

    def test_registered(self) -> None:
        """It shows that it reads there, and is seen with its router's address and port (I12)."""
        path = Path()
        assert path.keepalive.alive
        assert path.seen() == ("11.0.113.1", 61001)
        assert path.keepalive.outside == path.seen()
        assert path.moves == [("11.0.113.1", 61001)]
        assert path.keepalive.ignored == {}

    def test_what_it_says(self) -> None:
        """It says who it is, by which key, and nothing of anybody else; the sequence rises."""
        path = Path()
        path.advance(2 * INTERVAL)
        first, second, *rest = path.registrations()
        assert list(first.fields) == ["Identifier", "Key ID", "Expires", "Sequence", "Signature"]
        assert "Challenge" in second.fields
        sequences = [int(message.fields["Sequence"]) for message in (first, second, *rest)]
        assert sequences == sorted(set(sequences))
        assert {message.fields["Expires"] for message in rest} <= {"75", "113"}

    def test_remembered_for_long_enough(self) -> None:
        """The server is asked to remember it for a minute, however short the interval is."""
        path = Path(most=2)
        assert path.registrations()[-1].get("Expires") == str(REMEMBERED)

    def test_interval(self) -> None:
        """It sends one datagram an interval, as the server suggests, and no more (E11)."""
        path = registered()
        path.advance(10 * INTERVAL)
        assert len(path.said) == 10
        gaps = [b - a for a, b in zip(path.times(), path.times()[1:], strict=False)]
        assert all(INTERVAL <= gap < INTERVAL + 1 for gap in gaps)

    def test_new_address(self) -> None:
        """A router that gets another address is seen there from the next keepalive on (D1)."""
        path = Path()
        path.host = "11.0.113.77"
        path.forget()
        path.advance(2 * INTERVAL)
        assert path.seen()[0] == "11.0.113.77"
        assert path.moves[-1] == path.seen()
        assert path.keepalive.alive
        assert path.interval.seconds >= INTERVAL  # that says nothing of how long mappings last

    def test_new_key(self) -> None:
        """A new login's key takes the old one's place at once, on the same way."""
        path = Path()
        path.login("Kbbbbbbbbbbbbbbbbbbbbbb", b"t" * 32)
        new = len(path.said)
        path.notice()
        path.advance(1)
        assert path.said[new - 1][1].get("Key ID") == "Kbbbbbbbbbbbbbbbbbbbbbb"
        assert path.keepalive.alive
        assert path.seen() == ("11.0.113.1", 61001)
        assert len(path.clock.datagrams) == 2
        path.notice()
        assert path.notices == []

    def test_new_key_counts_anew(self) -> None:
        """What was told under the old key says nothing of the new one's notices."""
        path = Path()
        path.notice(10**9)
        path.login("Kb", b"t" * 32)
        path.notice(5, b"t" * 32, Key_ID="Kb")
        assert len(path.notices) == 2

    def test_server_restarted(self) -> None:
        """A server that has forgotten where it is asks it again, and that is all."""
        path = Path()
        for key in list(path.registrar.keys):
            path.registrar.mappings.drop(key)
        path.advance(INTERVAL + 1)
        assert path.seen() == ("11.0.113.1", 61001)
        assert path.failures == []
        assert path.interval.seconds >= INTERVAL

    def test_repeats(self) -> None:
        """One that is lost is repeated after a second; that the next is due changes nothing."""
        path = registered()
        path.lose = lambda _: len(path.said) == 1
        path.advance(INTERVAL + 2)
        first, second = path.times()
        assert second - first == REPEATS[0]
        assert path.failures == []
        assert path.keepalive.alive

    def test_fails(self) -> None:
        """Three without an answer, 1, 2 and 4 seconds apart, and it says that it has failed."""
        path = registered()
        path.cut = True
        path.advance(INTERVAL + 8)
        begun = path.times()[0]
        assert [round(when - begun, 3) for when in path.times()] == [0, 1, 3]
        assert [round(when - begun, 3) for when in path.failures] == [7]
        assert not path.keepalive.alive

    def test_heals(self) -> None:
        """It goes on trying, and is registered again once the network is back."""
        path = Path()
        path.cut = True
        path.advance(10 * INTERVAL)
        assert len(path.failures) > 1
        path.cut = False
        path.forget()
        path.advance(2 * INTERVAL)
        assert path.keepalive.alive
        assert path.seen() == path.keepalive.outside

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
        assert path.keepalive.alive
        assert path.keepalive.outside == path.seen()

    def test_no_network(self) -> None:
        """A datagram that can't even be sent is as good as lost."""
        path = Path(keeps_port=True)

        def unreachable(packet: bytes, addr: object) -> None:
            raise OSError(101, "Network is unreachable")

        path.port.write = unreachable  # type: ignore[method-assign]
        path.advance(INTERVAL + 8)
        assert path.keepalive.ignored["not sent"] == len(REPEATS)
        assert len(path.failures) == 1

    def test_stop(self) -> None:
        """It closes its port and leaves no timer behind."""
        path = Path()
        path.lose = lambda packet: b"Address:" in packet
        path.forget()
        path.advance(INTERVAL)
        question = path.said[-1][1]
        before = len(path.clock.getDelayedCalls())
        path.keepalive.stop()
        assert not path.port.listening
        assert len(path.clock.getDelayedCalls()) == before - 1
        assert not path.keepalive.alive
        said = len(path.said)
        path.notice()
        answer = Message(NOTIFY, Address="11.0.113.1", Port=61002)
        answer.fields["Transaction"] = question.fields["Transaction"]
        path.receive(answer.encode())  # late, and yet read in the same turn
        path.advance(1000)
        assert len(path.said) == said
        assert path.notices == []

    def test_ipv6(self) -> None:
        """A server with an IPv6 address is spoken to from such a port."""
        clock = FakeReactor()
        server = ("2001:db8::10", 1200)
        keepalive = Keepalive(clock, server, KeepaliveInterval(), random.randbytes, Path())
        keepalive.use("Ib", KEY_ID, SECRET, INTERVAL)
        (port,) = clock.datagrams
        assert port.address.host == "::"
        assert port.sent[0][1] == server


class IntervalTests:
    """The interval follows what is seen of the mapping's life (E1)."""

    def test_short_lived(self) -> None:
        """A router that forgets early makes it short: after a while the mapping never changes."""
        path = Path(lasts=4, interval=8)
        path.advance(60)
        assert path.interval.seconds < 4
        moves = len(path.moves)
        path.advance(100)
        assert len(path.moves) == moves

    def test_long_lived(self) -> None:
        """One that remembers for long makes it long, and few datagrams are needed (E11)."""
        path = Path(lasts=1000)
        path.advance(3600)
        assert path.interval.seconds == 300
        path.said.clear()
        path.advance(3600)
        assert len(path.said) == 12

    def test_unknown(self) -> None:
        """Where the router keeps the port, a new mapping looks like the old: nothing is guessed."""
        path = Path(lasts=40, keeps_port=True)
        path.advance(3600)
        assert path.interval.seconds == INTERVAL

    def test_repeated_prove_nothing(self) -> None:
        """An answer that came only to a repetition says nothing of the silence before it."""
        path = Path(most=100)
        path.lose = lambda _: path.said[-1][0] - path.said[-2][0] > 5  # the first one of each
        path.advance(INTERVAL * 10)
        assert path.keepalive.alive
        assert path.failures == []
        assert path.interval.seconds == INTERVAL

    def test_restart_of_the_router(self) -> None:
        """A router's restart halves it at the most, and it grows again."""
        path = Path(lasts=1000)
        path.advance(3600)
        path.forget()
        path.advance(310)
        assert path.interval.seconds == 150
        assert path.seen() == path.keepalive.outside
        path.advance(1000)
        assert path.interval.seconds > 200


class NoticeTests:
    """Fig. 10, E3, I26: what is for it and new wakes it; all else is ignored, and counted."""

    def test_woken(self) -> None:
        """A notice of the server wakes it, at once and once (E2, E11)."""
        path = Path()
        path.advance(10)
        assert path.registrar.notify("Ib")
        path.advance(2 * DELAY)
        assert len(path.notices) == 1
        assert path.notices[0] == pytest.approx(11 + DELAY)

    def test_each(self) -> None:
        """A later one wakes it again: the first may have come to nothing."""
        path = Path()
        for _ in range(3):
            path.registrar.notify("Ib")
            path.advance(1)
        assert len(path.notices) == 3

    def test_answers_nothing(self) -> None:
        """It sends nothing in return: who connects is answer enough."""
        path = registered()
        path.registrar.notify("Ib")
        path.advance(1)
        assert path.said == []

    def test_replayed(self) -> None:
        """The same notice again, or an earlier one, is old."""
        path = Path()
        path.notice(9000)
        path.notice(9000)
        path.notice(8999)
        assert len(path.notices) == 1
        assert path.keepalive.ignored == {"old": 2}

    @pytest.mark.parametrize(
        ("why", "datagram"),
        [
            ("not signed with the key", sign(a_notice(), b"x" * 32)),
            ("not signed with the key", a_notice().encode()),
            ("not signed with the key", sign(a_notice(), SECRET).replace(b"Ib", b"Ic")),
            ("for another terminal", sign(a_notice(Identifier="Ic"), SECRET)),
            ("for another terminal", sign(a_notice(Key_ID="Kx"), SECRET)),
            ("old", sign(a_notice(9), SECRET)),
            ("no message", b""),
            ("no message", b"\xff" * 1400),
            ("no message", sign(a_notice(), SECRET) * 2),
            ("no use for it", sign(Message(REGISTER, Identifier="Ib"), SECRET)),
            ("no use for it", Message(QUERY, ADDRESS).encode()),
            ("not asked for", sign(Message(NOTIFY, Challenge="c", Sequence=3), SECRET)),
            ("not asked for", sign(Message(NOTIFY, REGISTRATION_COMPLETED, Sequence=3), SECRET)),
            ("not asked for", sign(Message(NOTIFY, "Something.", Sequence=3), SECRET)),
            ("not asked for", Message(NOTIFY, Address="11.0.113.9", Port=9).encode()),
            ("not asked for", Message(NOTIFY, Address="::9", Port=9, Transaction="x").encode()),
        ],
    )
    def test_ignored(self, why: str, datagram: bytes) -> None:
        """It does nothing, sends nothing, and changes nothing, but counts it."""
        path = registered(keeps_port=False)
        path.notice(10)
        path.notices.clear()
        outside = path.keepalive.outside
        path.receive(datagram)
        assert (path.notices, path.said, path.keepalive.ignored) == ([], [], {why: 1})
        assert path.keepalive.outside == outside
        assert path.keepalive.alive

    def test_from_elsewhere(self) -> None:
        """What does not come from its server's address is not even read, signed or not."""
        path = Path()
        path.receive(sign(a_notice(), SECRET), ELSEWHERE)
        path.receive(sign(a_notice(), SECRET), (SERVER[0], 1201))
        assert path.notices == []
        assert path.keepalive.ignored == {"not from the server": 2}


class AnswerTests:
    """What of an answer is believed while a keepalive is under way."""

    def waiting(self) -> Path:
        """One whose keepalive is under way and gets no answer."""
        path = registered()
        path.cut = True
        path.advance(INTERVAL)
        assert len(path.said) == 1
        return path

    def test_believed(self) -> None:
        """The right one is."""
        path = self.waiting()
        sequence = path.registrations()[0].fields["Sequence"]
        path.receive(sign(Message(NOTIFY, REGISTRATION_COMPLETED, Sequence=sequence), SECRET))
        path.advance(8)
        assert path.failures == []

    @pytest.mark.parametrize(("key", "ahead"), [(b"x" * 32, 0), (SECRET, -1), (SECRET, 1)])
    def test_not_believed(self, key: bytes, ahead: int) -> None:
        """One with another signature, of another datagram, or of none that was sent, is not."""
        path = self.waiting()
        sequence = int(path.registrations()[0].fields["Sequence"]) + ahead
        path.receive(sign(Message(NOTIFY, REGISTRATION_COMPLETED, Sequence=sequence), key))
        path.advance(8)
        assert len(path.failures) == 1
        assert path.keepalive.ignored.total() == 1

    def test_challenged_for_ever(self) -> None:
        """However often its server challenges it, it answers a few times and then no more (I13)."""
        path = self.waiting()
        for _ in range(50):
            sequence = path.registrations()[-1].fields["Sequence"]
            path.receive(sign(Message(NOTIFY, Challenge="c", Sequence=sequence), SECRET))
        path.advance(8)
        assert len(path.said) == CHALLENGES + len(REPEATS)
        assert path.keepalive.ignored["challenged too often"] == 50 - CHALLENGES

    def test_looks(self) -> None:
        """How it looks it takes from the answer to its own question alone, and once."""
        path = Path()
        path.lose = lambda packet: b"Address:" in packet
        path.forget()
        path.advance(INTERVAL)
        question = path.said[-1][1]
        assert question.statement == ADDRESS
        forged = Message(NOTIFY, Address="11.0.113.9", Port=9, Transaction="0" * 16)
        path.receive(forged.encode())
        assert path.keepalive.outside == ("11.0.113.1", 61001)
        assert path.keepalive.ignored == {"not asked for": 1}
        answer = Message(NOTIFY, Address="11.0.113.1", Port=61002)
        answer.fields["Transaction"] = question.fields["Transaction"]
        path.receive(answer.encode())
        path.receive(answer.encode())
        assert path.keepalive.outside == ("11.0.113.1", 61002)
        assert path.keepalive.ignored == {"not asked for": 2}

    def test_challenge_repeated(self) -> None:
        """A challenge that is replayed is answered as often, and not once nothing is under way."""
        path = Path()
        captured = sign(Message(NOTIFY, Challenge="c", Sequence=1), SECRET)
        path.said.clear()
        path.receive(captured)
        assert path.said == []
