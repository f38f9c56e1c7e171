"""The channel: what a protocol on it may rely on, as on a TCP connection, and more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IProtocol,
    IPullProducer,
    IPushProducer,
    ITransport,
)
from zope.interface import implementer
from zope.interface.verify import verifyObject

from broker.interfaces import ISessionTransport
from broker.terminal.channel.channel import (
    APPLICATION_FAILED,
    LINGER,
    RECORDS_A_TURN,
    Channel,
    ChannelParties,
)
from broker.terminal.channel.records import Records, RecordType
from broker.terminal.errors import Aborted, Truncated
from tests.support.clock import advance, settle
from tests.support.reactor import FakeReactor
from tests.support.transport import FakeTransport
from tests.terminal.keys import CALLEE, CALLER, SESSION, joined
from tests.terminal.speakers import (
    Call,
    Echo,
    Failing,
    FailingAtTheEnd,
    HalfCloseable,
    Owner,
    Plain,
)

CHUNKS = st.one_of(st.none(), st.integers(1, 200))


def talking(
    a: Plain | None = None, b: Plain | None = None, **options: Any
) -> tuple[Call, Plain, Plain]:
    """A call that stands, and the protocols of both sides."""
    ours, theirs = a or HalfCloseable(), b or HalfCloseable()
    call = Call(lambda: ours, lambda: theirs, **options).pump()
    assert (ours.made, theirs.made) == (1, 1)
    return call, ours, theirs


def a_callee(opened: Callable[[], IProtocol]) -> tuple[Records, Channel, FakeTransport]:
    """A callee's channel alone, and what its caller's records are made with."""
    ours, theirs = joined()
    clock = FakeReactor()
    parties = ChannelParties(CALLEE, CALLER, SESSION, initiator=False)
    channel: Any = Channel(clock, theirs, parties, Owner(opened))
    transport = FakeTransport(channel, clock)
    transport.start()
    return ours, channel, transport


def outcome(side: Plain) -> type | str | None:
    """Why a side has lost its connection, once, where it has: a cause of the other side's."""
    if not side.lost:
        return None
    return side.why.cause if isinstance(side.why, Aborted) else type(side.why)


#: How both sides may have lost their connection, by ``outcome``.
CLEAN = (ConnectionDone, ConnectionDone)
TRUNCATED = (Truncated, Truncated)
GOES_ON = (None, None)
#: What a side does, as a method of its transport.
VERBS = {
    "ends": "loseWriteConnection",
    "closes": "loseConnection",
    "aborts": "abortConnection",
    "pauses": "pauseProducing",
    "resumes": "resumeProducing",
    "stops": "stopProducing",
}


def play(acts: str, *sides: Plain) -> tuple[Call, Plain, Plain]:
    """What the sides of a call do, and what befalls their connection, one after the other."""
    call, a, b = talking(*sides)
    for act in acts.split(", "):
        who, _, what = act.partition(" ")
        verb, _, text = what.partition(" ")
        if act == "pump":
            call.pump()
        elif act == "cut":
            call.pair.cut()
        elif who == "wait":
            advance(call.clock, float(what))
        elif what == "input":
            call.pair.b.end_input()
        elif verb == "writes":
            (a if who == "a" else b).transport.write(text.encode())
        else:
            transport = (a if who == "a" else b).transport
            getattr(transport, VERBS[verb])(*([text] if text else []))
    return call.pump(), a, b


def idle(call: Call) -> bool:
    """Whether nothing is left to happen by itself."""
    return not call.clock.getDelayedCalls()


class OpeningTests:
    """When each side's protocol has its connection."""

    def test_interfaces(self) -> None:
        """A channel is a transport, a consumer and a producer to the application."""
        call, _, _ = talking()
        for interface in (ITransport, IConsumer, IPushProducer, ISessionTransport):
            assert verifyObject(interface, call.a)
        assert IProtocol.providedBy(call.a)
        assert IHalfCloseableProtocol.providedBy(call.a)

    def test_who_speaks(self) -> None:
        """The application learns both identifiers, the session, and both addresses."""
        call, ours, theirs = talking()
        told = [
            (one.transport.identifier, one.transport.peer, one.transport.session)
            for one in (ours, theirs)
        ]
        assert told == [(CALLER, CALLEE, SESSION), (CALLEE, CALLER, SESSION)]
        assert ours.transport.getPeer() == theirs.transport.getHost() == call.pair.b.host
        assert ours.transport.getHost() == theirs.transport.getPeer() == call.pair.a.host

    def test_where_it_was(self) -> None:
        """The addresses are still known when the connection is gone, as with Twisted's own."""
        call, ours, _ = talking()
        peer = ours.transport.getPeer()
        call.pair.cut()
        assert call.a.getPeer() == peer
        assert call.a.getHost() is not None

    def test_callee_waits_for_the_proof(self) -> None:
        """The callee's application hears of no call before the first record (I7, wire.md)."""
        ours, theirs = Plain(), Plain()
        call = Call(lambda: ours, lambda: theirs)
        assert (ours.made, theirs.made) == (1, 0)
        call.b.write(b"too early")  # no protocol has this channel yet
        call.pump()
        assert theirs.made == 1

    def test_caller_proves_itself_at_once(self) -> None:
        """The caller's first record goes at once, empty, though its application says nothing."""
        call = Call(Plain, Plain)
        assert len(call.pair.a.writes) == 1
        assert len(call.pair.a.writes[0]) == 2 + 1 + 16

    @pytest.mark.parametrize("fails", [False, True])
    @pytest.mark.parametrize("side", ["caller", "callee"])
    def test_application_takes_no_call(self, side: str, fails: bool) -> None:
        """Where the application gives nothing, or fails, both sides end, and the other is told
        why; that is no one else's (I24).
        """
        other = Plain()

        def opened() -> IProtocol | None:
            if fails:
                raise RuntimeError("the application is wrong")
            return None

        sides = (opened, lambda: other) if side == "caller" else (lambda: other, opened)
        call = Call(*sides).pump()
        assert outcome(other) == "the call is not taken"
        assert sorted(name for name, _ in call.closed) == [CALLER, CALLEE]
        assert idle(call)


class DataTests:
    """Data arrives whole, in order, both ways."""

    @settings(deadline=None, max_examples=40)
    @given(
        out=st.lists(st.binary(max_size=300), max_size=6),
        back=st.lists(st.binary(max_size=300), max_size=6),
        chunk=CHUNKS,
        rekey=st.integers(1, 5),
    )
    def test_both_ways_in_any_pieces(
        self, out: list[bytes], back: list[bytes], chunk: int | None, rekey: int
    ) -> None:
        """What is written arrives, whatever pieces the connection makes of it (A12, I21)."""
        call, ours, theirs = talking(chunk=chunk, rekey=rekey)
        for data in out:
            ours.transport.write(data)
        theirs.transport.writeSequence(back)
        call.pump()
        assert theirs.received == b"".join(out)
        assert ours.received == b"".join(back)
        assert not ours.lost
        assert not theirs.lost

    def test_more_than_a_record(self) -> None:
        """A megabyte written at once arrives as it was."""
        call, ours, theirs = talking()
        data = bytes(range(256)) * 4096
        ours.transport.write(data)
        call.pump()
        assert theirs.received == data

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_what_may_be_written(self, kind: Callable[[bytes], Any]) -> None:
        """Whatever holds bytes may be written, and text may not."""
        call, ours, theirs = talking()
        ours.transport.write(kind(b"hello"))
        call.pump()
        assert theirs.received == b"hello"
        with pytest.raises(TypeError):
            ours.transport.write("hello")

    def test_nothing_in_clear(self) -> None:
        """An observer sees none of the data (C16, D8)."""
        call, ours, _ = talking()
        ours.transport.write(b"in confidence")
        assert b"in confidence" not in b"".join(call.pair.a.writes)

    @pytest.mark.parametrize("pauses", [False, True])
    def test_many_small_records_yield(self, pauses: bool) -> None:
        """However many records come in one piece, others have their turn in between (I24); a pause
        while more wait for theirs holds: nothing comes until it is resumed.
        """
        call, ours, theirs = talking()
        count = 3 * RECORDS_A_TURN
        for _ in range(count):
            ours.transport.write(b"x")
        call.pair.b.receive(call.pair.a.take(10**6))
        assert len(theirs.received) == RECORDS_A_TURN
        assert not call.pair.b.reading
        if pauses:
            theirs.transport.pauseProducing()
            call.pump()
            assert len(theirs.received) == RECORDS_A_TURN
            theirs.transport.resumeProducing()
        call.pump()
        assert len(theirs.received) == count
        assert call.pair.b.reading


class EndTests:
    """A clean end is one; everything else is told apart from it (I21)."""

    @settings(deadline=None, max_examples=30)
    @given(
        out=st.binary(max_size=500), back=st.binary(max_size=500), chunk=CHUNKS, first=st.booleans()
    )
    def test_each_side_ends_by_itself(
        self, out: bytes, back: bytes, chunk: int | None, first: bool
    ) -> None:
        """One side's end leaves the other's data flowing; both ends close it cleanly."""
        call, a, b = talking(chunk=chunk, rekey=2)
        one, other = (a, b) if first else (b, a)
        one.transport.write(out)
        one.transport.loseWriteConnection()
        call.pump()
        assert other.received == out
        assert (one.lost, other.lost) == ([], [])
        other.transport.write(back)
        other.transport.loseWriteConnection()
        call.pump()
        assert one.received == back
        assert outcome(one) == outcome(other) == ConnectionDone
        assert (getattr(one, "ends", 0), getattr(other, "ends", 0)) == (1, 1)
        assert idle(call)

    @pytest.mark.parametrize(
        ("acts", "a_received", "b_received", "ends"),
        [
            # Both close at once: what was on its way is thrown away.
            ("a writes words, a closes, b closes", "", "", CLEAN),
            # A side that closes hears nothing more, and only the other's end makes it clean.
            ("a closes, b writes unheard, pump, b closes", "", "", CLEAN),
            ("a closes, b writes unheard", "", "", GOES_ON),
            # A side that never ends its data is waited for 10 s, and then no longer (I15).
            (f"a closes, pump, wait {LINGER - 0.1}", "", "", GOES_ON),
            (f"a closes, pump, wait {LINGER}", "", "", TRUNCATED),
            # The end of the connection alone is no end of data (I21).
            ("a writes half, pump, b input", "", "half", TRUNCATED),
            # After the end of data it is as it should be, and the other side may go on.
            ("a ends, pump, b input", "", "", GOES_ON),
            ("a ends, pump, b input, b writes more, b ends", "more", "", CLEAN),
            # A connection that breaks before both ends of data came is truncation (I21).
            ("pump, cut", "", "", TRUNCATED),
            ("a ends, pump, cut", "", "", TRUNCATED),
            ("b ends, pump, cut", "", "", TRUNCATED),
            ("b ends, pump, a writes never read, a ends, cut", "", "", TRUNCATED),
            # The first cause of an abort counts.
            ("a aborts first, a aborts second", "", "", ("first", "first")),
            # A channel that lingers may still be broken off, and leaves no timer.
            ("a closes, pump, a aborts enough", "", "", ("enough", "enough")),
            # Nothing is delivered after an abort, on neither side.
            ("b writes on its way, a aborts stop", "", "", ("stop", "stop")),
            # A pause right after a resume holds, until it is resumed.
            ("b pauses, a writes x, b resumes, b pauses", "", "", GOES_ON),
            ("b pauses, a writes x, b resumes, b pauses, pump, b resumes", "", "x", GOES_ON),
            # A side that closes while paused still sees the other's end.
            ("b pauses, b closes, a closes", "", "", CLEAN),
            # An application that stops producing closes.
            ("b stops, a closes", "", "", CLEAN),
        ],
    )
    def test_end(self, acts: str, a_received: str, b_received: str, ends: tuple[Any, Any]) -> None:
        """What each side hears, and how it ends, once; then nothing is left to happen."""
        call, a, b = play(acts)
        assert (a.received.decode(), b.received.decode()) == (a_received, b_received)
        assert (outcome(a), outcome(b)) == ends
        assert len(call.closed) == (0 if ends == GOES_ON else 2)
        assert ends == GOES_ON or idle(call)

    @pytest.mark.parametrize("how", ["ends", "closes"])
    def test_no_half_close(self, how: str) -> None:
        """What knows no half-close loses its connection then; what was written arrives first."""
        call, a, b = play(f"a writes last words, a {how}", HalfCloseable(), Plain())
        assert b.received == b"last words"
        assert outcome(a) == outcome(b) == ConnectionDone
        assert idle(call)

    @pytest.mark.parametrize("how", ["loseWriteConnection", "loseConnection", "abortConnection"])
    def test_write_after_the_end(self, how: str) -> None:
        """What is written after closing goes nowhere, as on a TCP connection."""
        call, a, b = talking()
        a.transport.write(b"before")
        getattr(a.transport, how)()
        a.transport.write(b"after")
        written = len(call.pair.a.writes)
        a.transport.write(b"after")
        assert len(call.pair.a.writes) == written
        call.pump()
        assert b.received == b"before"

    @pytest.mark.parametrize("kind", [RecordType.DATA, RecordType.END])
    def test_more_after_the_end(self, kind: RecordType) -> None:
        """Data, or a second end, after the end breaks the call (I21)."""
        call, a, b = talking()
        a.transport.loseWriteConnection()
        call.a._send(kind, b"more" if kind is RecordType.DATA else b"")  # a bad peer
        call.pump()
        assert (b.received, outcome(b)) == (b"", Truncated)

    def test_forged_record(self) -> None:
        """A record bent on its way breaks the call; what came before it was delivered (I21)."""
        call, a, b = talking()
        a.transport.write(b"true")
        call.pump()
        call.pair.tamper = lambda _, data: data[:-1] + bytes((data[-1] ^ 1,))
        a.transport.write(b"bent")
        call.pump()
        assert b.received == b"true"
        assert outcome(a) == outcome(b) == Truncated
        assert idle(call)


class AbortTests:
    """Breaking a call off."""

    @pytest.mark.parametrize(
        ("cause", "heard", "text"),
        [
            ("no room left", "no room left", "the call was broken off: no room left"),
            ("", "", "the call was broken off"),
            ("é" * 400 + "x", "é" * 256, ""),  # 512 bytes, even where that cuts a letter (I15)
        ],
    )
    def test_cause(self, cause: str, heard: str, text: str) -> None:
        """Both sides learn the cause, and neither waits for an end of data."""
        call, a, b = talking()
        a.transport.abortConnection(cause)
        call.pump()
        for side, expected in ((a, cause), (b, heard)):
            why = side.why
            assert isinstance(why, Aborted)
            assert why.cause == expected
            assert not text or str(why) == text
        assert idle(call)

    def test_long_cause_of_a_peer(self) -> None:
        """The same of a cause that a peer made longer than it may be (I15)."""
        theirs = Plain()
        records, _, transport = a_callee(lambda: theirs)
        transport.receive(
            records.seal(RecordType.DATA) + records.seal(RecordType.ABORT, b"x" * 5000)
        )
        settle(transport.clock)
        assert outcome(theirs) == "x" * 512

    def test_peer_that_does_not_read(self) -> None:
        """Who reads nothing can't hold up an abort for more than 10 s (I15)."""
        call, a, _ = talking()
        a.transport.write(bytes(100))
        a.transport.abortConnection("gone")
        advance(call.clock, LINGER)  # nothing was moved
        assert isinstance(a.why, Aborted)
        assert idle(call)


class Pausing(HalfCloseable):
    """Pauses whenever it is given something.

    :param at_once: as it is made, too
    """

    def __init__(self, *, at_once: bool = False) -> None:
        super().__init__()
        self.at_once = at_once

    def connectionMade(self) -> None:
        super().connectionMade()
        if self.at_once:
            self.transport.pauseProducing()

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.transport.pauseProducing()


class PauseTests:
    """The application governs what is delivered to it."""

    @settings(deadline=None, max_examples=40)
    @given(
        pieces=st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=8),
        chunk=CHUNKS,
        pauses=st.lists(st.booleans(), min_size=8, max_size=8),
    )
    def test_nothing_while_paused_all_after(
        self, pieces: list[bytes], chunk: int | None, pauses: list[bool]
    ) -> None:
        """Paused at any time, nothing is delivered; resumed, everything is, once, in order."""
        call, a, b = talking(chunk=chunk)
        for data, paused in zip(pieces, pauses, strict=False):
            if paused:
                b.transport.pauseProducing()
            else:
                b.transport.resumeProducing()
                call.pump()
            before = b.received
            a.transport.write(data)
            call.pump()
            assert b.received == (before if paused else before + data)
        b.transport.resumeProducing()
        a.transport.loseWriteConnection()
        call.pump()
        assert b.received == b"".join(pieces)
        assert getattr(b, "ends", 0) == 1

    def test_paused_within_a_piece(self) -> None:
        """A pause from within ``dataReceived`` holds back what came in the same piece, the end
        included.
        """
        call, _, b = play("a writes 0, a writes 1, a writes 2, a ends", HalfCloseable(), Pausing())
        for n in range(1, 4):
            assert len(b.received) == n
            b.transport.resumeProducing()
            assert len(b.received) == n  # not from within the call
            assert getattr(b, "ends", 0) == 0
            call.pump()
        assert (b.received, getattr(b, "ends", 0)) == (b"012", 1)

    def test_paused_from_the_start(self) -> None:
        """A protocol that pauses as it is made is not given what the first record carries."""
        theirs = Pausing(at_once=True)
        records, channel, transport = a_callee(lambda: theirs)
        transport.receive(records.seal(RecordType.DATA, b"early"))
        assert (theirs.made, theirs.received) == (1, b"")
        channel.resumeProducing()
        settle(transport.clock)
        assert theirs.received == b"early"

    def test_held_up_in_its_turn(self) -> None:
        """While the application is paused, the connection is not read: the peer is held up."""
        call, a, b = talking()
        b.transport.pauseProducing()
        assert not call.pair.b.reading
        a.transport.write(bytes(1000))
        call.pump()
        assert len(call.pair.a.unread) > 1000
        b.transport.resumeProducing()
        call.pump()
        assert call.pair.b.reading
        assert len(b.received) == 1000

    def test_input_ends_while_paused(self) -> None:
        """Records that came before the connection's end count, though they are delivered later."""
        call, a, b = talking(HalfCloseable(), Pausing())
        a.transport.write(b"one")
        a.transport.write(b"two")
        a.transport.loseWriteConnection()
        call.pair.b.receive(call.pair.a.take(1000))
        call.b.readConnectionLost()
        assert (b.received, b.lost) == (b"one", [])
        for _ in range(2):
            b.transport.resumeProducing()
            settle(call.clock)
        assert (b.received, getattr(b, "ends", 0), b.lost) == (b"onetwo", 1, [])


@implementer(IPushProducer)
class Push:
    """Writes when a test says so.

    :ivar told: what it was told, in order
    """

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        """Note it."""
        self.told.append("pause")

    def resumeProducing(self) -> None:
        """Note it."""
        self.told.append("resume")

    def stopProducing(self) -> None:
        """Note it."""
        self.told.append("stop")


@implementer(IPullProducer)
class Pull(Push):
    """Writes a piece whenever it is asked."""

    def __init__(self, channel: Any, pieces: int) -> None:
        super().__init__(channel)
        self.pieces = pieces

    def resumeProducing(self) -> None:
        """Write the next piece, or be done."""
        self.told.append("resume")
        if self.pieces:
            self.pieces -= 1
            self.channel.write(bytes(10_000))
        else:
            self.channel.unregisterProducer()


class ProducerTests:
    """The connection's back-pressure reaches the application's producer."""

    def test_push_producer_is_paused_and_resumed(self) -> None:
        """Where the peer does not read, the producer is paused, and resumed when it has (I15)."""
        call, a, _ = talking()
        producer = Push(a.transport)
        a.transport.registerProducer(producer, True)
        a.transport.write(bytes(100_000))
        assert producer.told == ["pause"]
        call.pump()
        assert producer.told == ["pause", "resume"]

    @pytest.mark.parametrize(
        ("pieces", "close", "ends"),
        [(5, None, GOES_ON), (0, "loseWriteConnection", CLEAN), (5, "loseConnection", CLEAN)],
    )
    def test_pull_producer(self, pieces: int, close: str | None, ends: tuple[Any, Any]) -> None:
        """A producer that is pulled writes one piece, and the next when that has gone, until it has
        none left; an end that the application has asked for comes after all of them.
        """
        call, a, b = talking(HalfCloseable(), Plain())
        producer = Pull(a.transport, pieces)
        a.transport.registerProducer(producer, False)
        assert producer.told == ["resume"]
        if close is not None:
            getattr(a.transport, close)()
        call.pump()
        assert len(b.received) == 10_000 * pieces
        assert producer.told == ["resume"] * (pieces + 1)
        assert call.pair.a.producer is None
        assert (outcome(a), outcome(b)) == ends

    @pytest.mark.parametrize("how", ["cut", "a aborts enough"])
    @pytest.mark.parametrize("late", [False, True])
    def test_a_lost_call_stops_the_producer(self, how: str, late: bool) -> None:
        """The producer of a call that is broken off or lost is told to stop, once, also where it is
        registered after that; what it still writes goes nowhere.
        """
        call, a, b = talking()
        channel, producer = call.a, Push(call.a)
        if not late:
            channel.registerProducer(producer, True)
        if how == "cut":
            call.pair.cut()
        else:
            channel.abortConnection("enough")
        if late:
            channel.registerProducer(producer, True)
        assert producer.told == ["stop"]
        written = len(call.pair.a.writes)
        channel.write(b"more")
        assert len(call.pair.a.writes) == written
        call.pump()
        assert outcome(a) == outcome(b) == (Truncated if how == "cut" else "enough")
        assert producer.told == ["stop"]
        channel.unregisterProducer()

    def test_one_producer(self) -> None:
        """A second producer is refused, as Twisted's transports do, and the first one stays."""
        call, a, _ = talking()
        first = Push(a.transport)
        a.transport.registerProducer(first, True)
        with pytest.raises(RuntimeError):
            a.transport.registerProducer(Push(a.transport), True)
        assert call.pair.a.producer is first

    def test_one_channel_feeds_another(self) -> None:
        """A channel may be the producer of another: a slow reader holds up the first writer."""
        call, a, b = talking()
        other, _, d = talking(clock=call.clock)
        relay: Any = other.a
        relay.registerProducer(b.transport, True)

        def relayed(data: bytes) -> None:
            relay.write(data)

        b.dataReceived = relayed  # type: ignore[method-assign]
        for _ in range(40):
            a.transport.write(bytes(10_000))
        call.pump()
        assert not call.pair.b.reading
        assert call.pair.a.unread
        for _ in range(20):
            other.pump()
            call.pump()
        assert len(d.received) == 400_000


class ApplicationErrorTests:
    """An exception of the application's ends its own call and nothing else (I24)."""

    @pytest.mark.parametrize("where", ["connectionMade", "dataReceived"])
    def test_call_is_broken_off(self, where: str) -> None:
        """Both sides learn that the application failed, without detail; no exception escapes."""
        a, b = Plain(), Failing(where)
        call = Call(lambda: a, lambda: b)
        a.transport.write(b"x")
        a.transport.write(b"y")
        call.pump()
        assert b.received == (b"x" if where == "dataReceived" else b"")
        assert outcome(a) == outcome(b) == APPLICATION_FAILED
        assert idle(call)

    @pytest.mark.parametrize(
        ("acts", "failing"),
        [
            ("b pauses, a writes x, pump, b resumes", lambda: Failing("dataReceived")),
            ("a ends", FailingAtTheEnd),
        ],
    )
    def test_later(self, acts: str, failing: Callable[[], Plain]) -> None:
        """The same after a pause, and as it is told of the other side's end."""
        _, a, b = play(acts, HalfCloseable(), failing())
        assert outcome(a) == outcome(b) == APPLICATION_FAILED

    def test_as_it_is_lost(self) -> None:
        """An application that fails in ``connectionLost`` still leaves the call over for us."""
        call, _, b = talking(Plain(), Failing("connectionLost"))
        call.pair.cut()
        assert len(b.lost) == 1
        assert [name for name, _ in call.closed] == [CALLER, CALLEE]

    def test_other_calls_go_on(self) -> None:
        """Another call on the same clock is not touched."""
        healthy, c, d = talking(Plain(), Echo())
        call, a, _ = talking(Plain(), Failing("dataReceived"), clock=healthy.clock)
        a.transport.write(b"x")
        call.pump()
        c.transport.write(b"hello")
        healthy.pump()
        assert c.received == d.received == b"hello"
