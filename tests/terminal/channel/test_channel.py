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


def both_end_with(why: type[Exception], *sides: Plain) -> bool:
    """Whether that is why each side has lost its connection, once."""
    return all(isinstance(side.why, why) for side in sides)


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
        """The application learns whom it speaks with, as whom, in which session, and where."""
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
        call.b.write(b"too early")  # nobody has been given this channel yet
        call.pump()
        assert theirs.made == 1

    def test_caller_proves_itself_at_once(self) -> None:
        """The caller's first record goes at once, empty, though its application says nothing."""
        call = Call(Plain, Plain)
        assert len(call.pair.a.writes) == 1
        assert len(call.pair.a.writes[0]) == 2 + 1 + 16

    @pytest.mark.parametrize("side", ["caller", "callee"])
    def test_application_takes_no_call(self, side: str) -> None:
        """Where ``opened`` gives nothing, both sides end, and the other is told why."""
        other = Plain()
        nothing: Callable[[], None] = lambda: None  # noqa: E731 - for its type
        if side == "caller":
            call = Call(nothing, lambda: other).pump()
        else:
            call = Call(lambda: other, nothing).pump()
        why = other.why
        assert isinstance(why, Aborted)
        assert why.cause == "the call is not taken"
        assert sorted(name for name, _ in call.closed) == [CALLER, CALLEE]
        assert idle(call)

    def test_application_fails_to_open(self) -> None:
        """An exception while a protocol is made ends this call and is no one else's (I24)."""

        def broken() -> IProtocol:
            raise RuntimeError("the application is wrong")

        ours = Plain()
        call = Call(lambda: ours, broken).pump()
        assert isinstance(ours.why, Aborted)
        assert len(call.closed) == 2
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

    def test_many_small_records_yield(self) -> None:
        """However many records come in one piece, others have their turn in between (I24)."""
        call, ours, theirs = talking()
        count = 3 * RECORDS_A_TURN
        for _ in range(count):
            ours.transport.write(b"x")
        call.pair.b.receive(call.pair.a.take(10**6))
        assert len(theirs.received) == RECORDS_A_TURN
        assert not call.pair.b.reading
        call.pump()
        assert len(theirs.received) == count
        assert call.pair.b.reading

    def test_application_pauses_between_turns(self) -> None:
        """A pause while more records wait for their turn holds: nothing comes until resumed."""
        call, ours, theirs = talking()
        for _ in range(2 * RECORDS_A_TURN):
            ours.transport.write(b"x")
        call.pair.b.receive(call.pair.a.take(10**6))
        theirs.transport.pauseProducing()
        call.pump()
        assert len(theirs.received) == RECORDS_A_TURN
        theirs.transport.resumeProducing()
        call.pump()
        assert len(theirs.received) == 2 * RECORDS_A_TURN


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
        assert both_end_with(ConnectionDone, one, other)
        assert (getattr(one, "ends", 0), getattr(other, "ends", 0)) == (1, 1)
        assert idle(call)

    @pytest.mark.parametrize(
        ("half_closeable", "how"),
        [
            (False, "loseWriteConnection"),  # what knows no half-close loses its connection then
            (False, "loseConnection"),
            (True, "both at once"),
        ],
    )
    def test_closing(self, half_closeable: bool, how: str) -> None:
        """Closing delivers what was written, then both sides end cleanly, once."""
        call, a, b = talking(HalfCloseable(), HalfCloseable() if half_closeable else Plain())
        a.transport.write(b"last words")
        if how == "both at once":
            a.transport.loseConnection()
            b.transport.loseConnection()
        else:
            getattr(a.transport, how)()
        call.pump()
        assert b.received == (b"" if half_closeable else b"last words")
        assert both_end_with(ConnectionDone, a, b)
        assert [name for name, _ in call.closed].count(CALLER) == 1
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

    def test_what_comes_after_closing_is_thrown_away(self) -> None:
        """Who closes hears nothing more, and the other side's end still makes it clean."""
        call, a, b = talking()
        a.transport.loseConnection()
        b.transport.write(b"unheard")
        call.pump()
        assert a.received == b""
        assert not a.lost
        b.transport.loseConnection()
        call.pump()
        assert isinstance(a.why, ConnectionDone)

    def test_linger(self) -> None:
        """A side that never ends its data is waited for 10 s, and then no longer (I15)."""
        call, a, b = talking()
        a.transport.loseConnection()
        call.pump()
        advance(call.clock, LINGER - 0.1)
        assert not a.lost
        advance(call.clock, 0.1)
        call.pump()
        assert both_end_with(Truncated, a, b)
        assert idle(call)

    def test_connection_ends_without_an_end(self) -> None:
        """The end of the connection alone is no end of data: it is truncation (I21)."""
        call, a, b = talking()
        a.transport.write(b"half of it")
        call.pump()
        call.pair.b.end_input()
        call.pump()
        assert b.received == b"half of it"
        assert isinstance(b.why, Truncated)
        assert idle(call)

    def test_connection_ends_after_the_end(self) -> None:
        """After the end of data, the end of the connection's input is as it should be."""
        call, a, b = talking()
        a.transport.loseWriteConnection()
        call.pump()
        call.pair.b.end_input()
        assert not b.lost
        b.transport.write(b"still here")
        b.transport.loseWriteConnection()
        call.pump()
        assert a.received == b"still here"
        assert isinstance(b.why, ConnectionDone)

    @pytest.mark.parametrize("ended", ["neither", "ours", "theirs", "both, and ours is unread"])
    def test_connection_lost(self, ended: str) -> None:
        """A connection that breaks before both ends of data came is truncation (I21)."""
        call, a, b = talking()
        if ended == "ours":
            a.transport.loseWriteConnection()
        elif ended != "neither":
            b.transport.loseWriteConnection()
        call.pump()
        if ended.startswith("both"):
            a.transport.write(b"never read")
            a.transport.loseWriteConnection()
        call.pair.cut()
        assert both_end_with(Truncated, a, b)
        assert idle(call)

    @pytest.mark.parametrize("kind", [RecordType.DATA, RecordType.END])
    def test_more_after_the_end(self, kind: RecordType) -> None:
        """Data, or a second end, after the end breaks the call (I21)."""
        call, a, b = talking()
        a.transport.loseWriteConnection()
        call.a._send(kind, b"more" if kind is RecordType.DATA else b"")  # a bad peer
        call.pump()
        assert b.received == b""
        assert isinstance(b.why, Truncated)

    def test_forged_record(self) -> None:
        """A record bent on its way breaks the call; what came before it was delivered (I21)."""
        call, a, b = talking()
        a.transport.write(b"true")
        call.pump()
        call.pair.tamper = lambda _, data: data[:-1] + bytes((data[-1] ^ 1,))
        a.transport.write(b"bent")
        call.pump()
        assert b.received == b"true"
        assert both_end_with(Truncated, b, a)
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
        assert isinstance(theirs.why, Aborted)
        assert theirs.why.cause == "x" * 512

    def test_twice(self) -> None:
        """The first cause counts, and the application is told once."""
        call, a, b = talking()
        a.transport.abortConnection("first")
        a.transport.abortConnection("second")
        call.pump()
        assert isinstance(b.why, Aborted)
        assert b.why.cause == "first"

    def test_after_closing(self) -> None:
        """A channel that lingers may still be broken off, and leaves no timer."""
        call, a, b = talking()
        a.transport.loseConnection()
        call.pump()
        a.transport.abortConnection("enough")
        call.pump()
        assert both_end_with(Aborted, a, b)
        assert idle(call)

    def test_peer_that_does_not_read(self) -> None:
        """Who reads nothing can't hold up an abort for more than 10 s (I15)."""
        call, a, _ = talking()
        a.transport.write(bytes(100))
        a.transport.abortConnection("gone")
        advance(call.clock, LINGER)  # nothing was moved
        assert isinstance(a.why, Aborted)
        assert idle(call)

    def test_data_after_an_abort(self) -> None:
        """Nothing is delivered after an abort, on neither side."""
        call, a, b = talking()
        b.transport.write(b"on its way")
        a.transport.abortConnection("stop")
        call.pump()
        assert a.received == b""


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
        """A pause from within ``dataReceived`` holds back what came in the same piece."""

        class Pausing(Plain):
            def dataReceived(self, data: bytes) -> None:
                super().dataReceived(data)
                self.transport.pauseProducing()

        call, a, b = talking(HalfCloseable(), Pausing())
        for n in range(3):
            a.transport.write(bytes((n,)))
        a.transport.loseConnection()
        call.pump()
        assert b.received == b"\x00"
        for n in range(1, 3):
            b.transport.resumeProducing()
            assert len(b.received) == n  # not from within the call
            call.pump()
            assert len(b.received) == n + 1
        b.transport.resumeProducing()
        call.pump()
        assert isinstance(b.why, ConnectionDone)

    def test_paused_from_the_start(self) -> None:
        """A protocol that pauses as it is made is not given what the first record carries."""

        class Waiting(Plain):
            def connectionMade(self) -> None:
                super().connectionMade()
                self.transport.pauseProducing()

        theirs = Waiting()
        records, channel, transport = a_callee(lambda: theirs)
        transport.receive(
            records.seal(RecordType.DATA, b"early") + records.seal(RecordType.DATA, b"later")
        )
        assert (theirs.made, theirs.received) == (1, b"")
        channel.resumeProducing()
        settle(transport.clock)
        assert theirs.received == b"earlylater"

    def test_resumed_and_paused_in_one_turn(self) -> None:
        """The last word counts: a pause right after a resume holds."""
        call, a, b = talking()
        b.transport.pauseProducing()
        a.transport.write(b"later")
        b.transport.resumeProducing()
        b.transport.pauseProducing()
        call.pump()
        assert b.received == b""
        b.transport.resumeProducing()
        call.pump()
        assert b.received == b"later"

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

        class Pausing(HalfCloseable):
            def dataReceived(self, data: bytes) -> None:
                super().dataReceived(data)
                self.transport.pauseProducing()

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

    def test_closing_resumes(self) -> None:
        """Who closes while paused still sees the other side's end."""
        call, a, b = talking()
        b.transport.pauseProducing()
        b.transport.loseConnection()
        a.transport.loseConnection()
        call.pump()
        assert both_end_with(ConnectionDone, b, a)

    def test_stop_producing(self) -> None:
        """An application that wants no more closes."""
        call, a, b = talking()
        b.transport.stopProducing()
        a.transport.loseConnection()
        call.pump()
        assert isinstance(b.why, ConnectionDone)


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

    def test_pull_producer_is_asked_as_the_peer_reads(self) -> None:
        """A producer that is pulled writes one piece, and the next when that has gone."""
        call, a, b = talking()
        producer = Pull(a.transport, 5)
        a.transport.registerProducer(producer, False)
        assert producer.told == ["resume"]
        call.pump()
        assert len(b.received) == 50_000
        assert producer.told == ["resume"] * 6

    def test_pull_producer_that_has_nothing(self) -> None:
        """A producer that is done with its first turn is unregistered for good."""
        call, a, b = talking()
        a.transport.registerProducer(Pull(a.transport, 0), False)
        a.transport.loseWriteConnection()
        call.pump()
        assert call.pair.a.producer is None
        assert getattr(b, "ends", 0) == 1

    def test_closing_waits_for_the_producer(self) -> None:
        """``loseConnection`` with a producer registered lets all it produces go first."""
        call, a, b = talking(HalfCloseable(), Plain())
        producer = Pull(a.transport, 5)
        a.transport.registerProducer(producer, False)
        a.transport.loseConnection()
        call.pump()
        assert len(b.received) == 50_000
        assert both_end_with(ConnectionDone, a, b)

    def test_abort_stops_the_producer(self) -> None:
        """A broken-off call's producer is told to stop, and what it still writes goes nowhere."""
        call, a, b = talking()
        producer = Push(a.transport)
        a.transport.registerProducer(producer, True)
        a.transport.abortConnection("enough")
        assert producer.told == ["stop"]
        written = len(call.pair.a.writes)
        a.transport.write(b"more")
        assert len(call.pair.a.writes) == written
        call.pump()
        assert isinstance(b.why, Aborted)
        assert producer.told == ["stop"]

    def test_lost_connection_stops_the_producer(self) -> None:
        """So is the producer of a call that was lost."""
        call, a, _ = talking()
        producer = Push(a.transport)
        a.transport.registerProducer(producer, True)
        call.pair.cut()
        assert producer.told == ["stop"]

    @pytest.mark.parametrize("how", ["cut", "abort"])
    def test_too_late(self, how: str) -> None:
        """A producer registered when the call is over is stopped at once."""
        call, a, _ = talking()
        if how == "cut":
            call.pair.cut()
        else:
            call.a.abortConnection()
        producer = Push(call.a)
        call.a.registerProducer(producer, True)
        assert producer.told == ["stop"]
        call.a.unregisterProducer()
        assert a.made == 1

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
        for one in (a, b):
            assert isinstance(one.why, Aborted)
            assert one.why.cause == APPLICATION_FAILED
        assert idle(call)

    def test_in_a_later_turn(self) -> None:
        """The same holds for what is delivered after a pause."""
        call, a, b = talking(Plain(), Failing("dataReceived"))
        b.transport.pauseProducing()
        a.transport.write(b"x")
        call.pump()
        b.transport.resumeProducing()
        call.pump()
        assert both_end_with(Aborted, b, a)

    def test_at_the_end(self) -> None:
        """And for an application that fails as it is told of the other side's end."""
        call, a, b = talking(HalfCloseable(), FailingAtTheEnd())
        a.transport.loseWriteConnection()
        call.pump()
        assert both_end_with(Aborted, b, a)

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
