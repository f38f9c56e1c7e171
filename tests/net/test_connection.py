"""The protocol over TCP (broker.net.connection), over transports in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectError, ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IProtocol,
    IProtocolFactory,
    IPushProducer,
)
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from broker.messages.framing import AUTHENTICATED, Body, Limits
from broker.messages.message import Malformed, Message
from broker.net.connection import EVENTS_A_TURN, OUTPUT_A_TURN, ConnectionFactory, PeerConnection
from broker.net.hub import ConnectionHub
from broker.net.per_source import source_of
from tests.net.recorder import Recorder, record
from tests.support.clock import advance, settle, turn
from tests.support.transport import Client

QUERY = Message("QUERY", "STATUS")
NOTICE = Message("NOTIFY", "Superseded.")


@contextmanager
def logged() -> Iterator[list[dict[str, Any]]]:
    """What is logged meanwhile."""
    events: list[dict[str, Any]] = []
    observe: Any = events.append
    globalLogPublisher.addObserver(observe)
    try:
        yield events
    finally:
        globalLogPublisher.removeObserver(observe)


class Streaming:
    """A clock, a hub, and clients of it."""

    def setup_method(self) -> None:
        """Nobody is connected yet."""
        self.clock = Clock()
        self.hub = ConnectionHub(self.clock)

    def teardown_method(self) -> None:
        """Whatever happened, no timer outlives the hub."""
        self.hub.stop()
        settle(self.clock)
        assert self.clock.getDelayedCalls() == []

    def connect(self, host: str = "127.0.0.1", *, known: bool = True) -> tuple[Client, Recorder]:
        """One more client, after login where it is known."""
        client, recorder = record(self.hub, host)
        if known:
            recorder.stream.authenticated()
        return client, recorder

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        advance(self.clock, seconds)

    def closes_after(self, client: Client, seconds: float) -> None:
        """The connection is open until then, and closed at that time."""
        self.advance(seconds - 0.1)
        assert not client.closed
        self.advance(0.1)
        assert client.closed


class ConnectionTests(Streaming):
    """The beginning and the end of a connection."""

    def test_interfaces(self) -> None:
        """A stream is a protocol that outlives its peer's input, and a producer of its output."""
        _, recorder = self.connect()
        for interface in (IProtocol, IHalfCloseableProtocol, IPushProducer):
            assert verifyObject(interface, recorder.stream)
        assert verifyObject(IProtocolFactory, ConnectionFactory(self.hub, Recorder))

    def test_options_of_the_socket(self) -> None:
        """Nothing waits in Nagle's algorithm, and a vanished host is noticed in the end."""
        client, _ = self.connect()
        assert client.transport.no_delay is True
        assert client.transport.keep_alive is True
        assert client.transport.producer is client.protocol
        assert client.transport.streaming

    def test_lost(self) -> None:
        """The receiver learns that the connection is gone, and why; no more is sent then."""
        client, recorder = self.connect()
        stream = recorder.stream
        assert stream.connected
        stream.send(NOTICE)
        client.vanish()
        assert recorder.heard == ["lost"]
        assert recorder.lost_by(ConnectionLost)
        for act in (partial(stream.send, NOTICE), stream.flush, stream.close, stream.abort):
            act()
        stream.hold()
        stream.go_on()
        settle(self.clock)
        assert client.bytes() == b""
        assert recorder.heard == ["lost"]

    def test_lost_while_waiting_for_its_turn(self) -> None:
        """What a lost peer had still to be heard is not heard."""
        client, recorder = self.connect()
        client.feed(QUERY.encode() * 100)
        client.vanish()
        assert recorder.heard == [QUERY] * 64 + ["lost"]

    def test_close(self) -> None:
        """What was sent before the end is written; nothing is heard after it."""
        client, recorder = self.connect()

        def answer_and_close(message: Message) -> None:
            recorder.stream.send(NOTICE)
            recorder.stream.close()
            recorder.stream.send(QUERY)

        recorder.on_message = answer_and_close
        client.send(QUERY.encode() * 3)
        assert client.received() == [NOTICE]
        assert client.closed
        assert recorder.heard == [QUERY, "lost"]
        assert recorder.lost_by(ConnectionDone)

    def test_close_on_a_peer_that_does_not_read(self) -> None:
        """It is cut off after 10 seconds: a closed connection holds nothing for ever (I15)."""
        client, recorder = self.connect()
        client.transport.stop_reading_peer()
        recorder.stream.send(NOTICE)
        recorder.stream.close()
        self.closes_after(client, 10)
        assert client.transport.aborted

    def test_close_with_much_unread(self) -> None:
        """A peer that reads on in time gets all that was written before the close."""
        client, recorder = self.connect()
        client.transport.stop_reading_peer()
        recorder.stream.write(b"x" * 100_000)
        recorder.stream.close()
        self.advance(5)
        client.transport.resume_reading_peer()
        assert client.closed
        assert client.bytes() == b"x" * 100_000
        assert not client.transport.aborted

    def test_abort(self) -> None:
        """Aborted, nothing more is written or heard."""
        client, recorder = self.connect()
        recorder.stream.send(NOTICE)
        recorder.stream.abort()
        assert not recorder.stream.connected
        assert client.closed
        assert client.bytes() == b""
        assert recorder.lost_by(ConnectionAborted)

    def test_trace(self) -> None:
        """Each message in and out can be followed."""
        seen: list[tuple[str, Message]] = []
        self.hub.trace = lambda _, way, message: seen.append((way, message))
        client, recorder = self.connect()
        recorder.on_message = lambda _: recorder.stream.send(NOTICE)
        client.send(QUERY.encode() + b"\n\n")
        assert seen == [("<", QUERY), (">", NOTICE)]


class EventsTests(Streaming):
    """What a receiver hears."""

    def test_each_kind(self) -> None:
        """Messages, bodies, what is malformed and the end of input, in their order."""
        client, recorder = self.connect()
        client.type("QUERY\nSTATUS\n\nQUERY\nPort:x\n\nREQUEST\nLength:3\n\nabcQUERY\nSTATUS\n\n")
        client.end_input()
        assert recorder.heard == [
            QUERY,
            Malformed("Port: must be a number"),
            Message("REQUEST", Length=3),
            Body(b"abc", last=True),
            QUERY,
            "ended",
        ]

    def test_end_within_a_message(self) -> None:
        """An unfinished message is malformed, and the end of input with it."""
        client, recorder = self.connect()
        client.type("QUERY\nSTA")
        client.end_input()
        (malformed,) = recorder.heard
        assert isinstance(malformed, Malformed)
        assert malformed.fatal

    def test_at_a_persons_pace(self) -> None:
        """A message typed letter by letter is heard once, when its empty line comes."""
        client, recorder = self.connect()
        for letter in "QUERY\nSTATUS\n":
            client.type(letter)
        assert recorder.heard == []
        client.type("\n")
        assert recorder.heard == [QUERY]

    def test_hold(self) -> None:
        """Held, nothing is heard and nothing is read; it goes on where it was."""
        client, recorder = self.connect()

        def hold(message: Message) -> None:
            recorder.stream.hold()

        recorder.on_message = hold
        client.send(QUERY.encode() * 2 + b"QUERY\n")
        client.send(b"STATUS\n\n")
        assert recorder.heard == [QUERY]
        assert client.transport.waiting == 8
        recorder.stream.go_on()
        assert recorder.heard == [QUERY]  # in a turn of its own
        settle(self.clock)
        assert recorder.heard == [QUERY] * 2
        recorder.stream.go_on()
        settle(self.clock)
        assert recorder.heard == [QUERY] * 3
        client.end_input()
        assert recorder.heard == [QUERY] * 3
        recorder.stream.go_on()
        settle(self.clock)
        assert recorder.heard == [QUERY] * 3 + ["ended"]

    def test_failure(self) -> None:
        """A receiver that fails costs that peer its connection, no other, and is logged (I24)."""
        client, recorder = self.connect()
        other, other_recorder = self.connect()

        def fail(message: Message) -> None:
            other_recorder.stream.send(NOTICE)
            recorder.stream.send(NOTICE)
            raise LookupError("unforeseen")

        recorder.on_message = fail
        with logged() as events:
            client.send(QUERY.encode() * 2)
        assert client.closed
        assert client.bytes() == b""
        assert recorder.heard == [QUERY, "lost"]
        (event,) = events
        assert event["log_failure"].check(LookupError)
        assert other.received() == [NOTICE]
        other.send(QUERY)
        assert other_recorder.heard == [QUERY]
        assert not other.closed


class TurnsTests(Streaming):
    """Turns of the reactor: fairness in, and one write out."""

    def test_events_a_turn(self) -> None:
        """Of one peer 64 events are handled at a time; then another has its turn (I16, I24)."""
        assert EVENTS_A_TURN == 64
        client, recorder = self.connect()
        other, other_recorder = self.connect()
        client.feed(QUERY.encode() * 150)
        assert len(recorder.heard) == 64
        assert not client.transport.reading
        other.feed(QUERY.encode())
        assert other_recorder.heard == [QUERY]
        turn(self.clock)
        assert len(recorder.heard) == 128
        turn(self.clock)
        assert len(recorder.heard) == 150
        assert client.transport.reading
        client.send(QUERY)
        assert len(recorder.heard) == 151

    @pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
    def test_empty_lines_a_turn(self, line_end: bytes) -> None:
        """A flood of empty lines has no longer turn than one of messages (I24)."""
        client, _ = self.connect()
        client.feed(line_end * 30_000)
        assert client.bytes() == b"\r\n" * 64
        settle(self.clock)
        assert client.bytes() == b"\r\n" * (15_000 - 64)

    def test_end_of_input_behind_many(self) -> None:
        """The end of input is heard after all that came before it."""
        client, recorder = self.connect()
        client.feed(QUERY.encode() * 150)
        client.transport.end_input()
        assert len(recorder.heard) == 64
        settle(self.clock)
        assert recorder.heard == [QUERY] * 150 + ["ended"]

    def test_one_write(self) -> None:
        """What goes to one peer in one turn goes in one write."""
        client, recorder = self.connect()
        other, other_recorder = self.connect()

        def answer(message: Message) -> None:
            recorder.stream.send(NOTICE)
            other_recorder.stream.send(QUERY)

        recorder.on_message = answer
        client.feed(QUERY.encode() * 3)
        assert client.transport.writes == [NOTICE.encode() * 3]
        assert other.transport.writes == [QUERY.encode() * 3]

    def test_one_write_outside_a_turn(self) -> None:
        """What is sent without anything having come in leaves together, in the next turn."""
        client, recorder = self.connect()
        recorder.stream.send(NOTICE)
        recorder.stream.send(QUERY)
        assert client.transport.writes == []
        self.clock.advance(0)
        assert client.transport.writes == [NOTICE.encode() + QUERY.encode()]

    def test_order_of_writes(self) -> None:
        """Who was sent to last is written to last: the callee before the caller (A11)."""
        caller, caller_recorder = self.connect()
        callee, callee_recorder = self.connect()
        order: list[str] = []
        caller.transport.on_write = lambda _: order.append("caller")
        callee.transport.on_write = lambda _: order.append("callee")

        def mediate(message: Message) -> None:
            caller_recorder.stream.send(Message("NOTIFY", "Request Accepted."))
            callee_recorder.stream.send(NOTICE)
            caller_recorder.stream.send(NOTICE)

        caller_recorder.on_message = mediate
        caller.feed(QUERY.encode())
        assert order == ["callee", "caller"]

    def test_written_as_the_connection_goes(self) -> None:
        """What others are sent because a peer is gone leaves in that very turn."""
        client, recorder = self.connect()
        other, other_recorder = self.connect()
        recorder.stream.receiver.connection_lost = (  # type: ignore[method-assign]
            lambda reason: other_recorder.stream.send(NOTICE)
        )
        client.transport.lose(ConnectionLost())
        assert other.transport.writes == [NOTICE.encode()]


class OutputTests(Streaming):
    """Peers that don't read what they are sent."""

    def stalled(self, *, known: bool = True) -> tuple[Client, Recorder]:
        """A client that reads nothing, and to which so much was written that it waits."""
        client, recorder = self.connect(known=known)
        client.transport.stop_reading_peer()
        recorder.stream.write(b"x" * (client.transport.bufferSize + 1))
        settle(self.clock)
        return client, recorder

    def fill(self, recorder: Recorder, octets: int) -> None:
        """Write more."""
        recorder.stream.write(b"x" * octets)
        settle(self.clock)

    @pytest.mark.parametrize(("known", "octets"), [(True, 256 * 1024), (False, 4096)])
    def test_cap(self, known: bool, octets: int) -> None:
        """After login 256 KiB may wait, before it 4 KiB, not a byte more (I14, I15)."""
        client, recorder = self.stalled(known=known)
        for _ in range(4):
            self.fill(recorder, octets // 4)
        assert not client.closed
        self.fill(recorder, 1)
        assert client.closed
        assert client.transport.aborted
        assert recorder.heard == ["lost"]

    @pytest.mark.parametrize(("known", "seconds"), [(True, 10), (False, 5)])
    def test_deadline(self, known: bool, seconds: float) -> None:
        """After login a peer has 10 seconds to read, before it 5 (I14)."""
        client, _ = self.stalled(known=known)
        self.closes_after(client, seconds)
        assert client.transport.aborted

    def test_deadline_is_not_put_off(self) -> None:
        """It runs from when the peer stopped reading, whatever is written meanwhile."""
        client, recorder = self.stalled()
        for _ in range(9):
            self.advance(1)
            self.fill(recorder, 100)
        self.advance(1)
        assert client.closed

    def test_reads_on(self) -> None:
        """A peer that reads in time goes on as if nothing had been, its cap and deadline anew."""
        client, recorder = self.stalled()
        self.fill(recorder, 200_000)
        self.advance(9)
        client.transport.resume_reading_peer()
        self.advance(20)
        assert not client.closed
        client.transport.stop_reading_peer()
        self.fill(recorder, 65537)
        self.fill(recorder, 200_000)
        self.closes_after(client, 10)

    def test_little_unread(self) -> None:
        """A peer that has little to read may take its time."""
        client, recorder = self.connect()
        client.transport.stop_reading_peer()
        self.fill(recorder, 1000)
        self.advance(60)
        assert not client.closed

    def test_one_turn(self) -> None:
        """Requests in one piece with long answers can't make more wait than the cap (I15)."""
        client, recorder = self.connect()
        client.transport.stop_reading_peer()
        recorder.on_message = lambda _: recorder.stream.write(b"x" * 50_000)
        client.feed(QUERY.encode() * 64)
        most = OUTPUT_A_TURN + 50_000
        assert len(client.transport.unread) <= most
        for _ in range(10):
            turn(self.clock)
            assert len(client.transport.unread) <= 2 * most + AUTHENTICATED.output
        assert client.closed

    def test_one_turn_of_a_peer_that_reads(self) -> None:
        """A peer that reads has all of the long answers."""
        client, recorder = self.connect()
        recorder.on_message = lambda _: recorder.stream.write(b"x" * 50_000)
        client.send(QUERY.encode() * 64)
        assert len(client.bytes()) == 64 * 50_000
        assert not client.closed

    def test_as_set(self) -> None:
        """The limits are those of the hub."""
        self.hub = ConnectionHub(self.clock, authenticated=Limits(output=100, stalled=2))
        client, recorder = self.stalled()
        self.fill(recorder, 100)
        self.closes_after(client, 2)


class LoginTests(Streaming):
    """Peers that don't say who they are."""

    def test_silent(self) -> None:
        """Without a login a connection lasts 10 seconds (I14)."""
        client, recorder = self.connect(known=False)
        self.closes_after(client, 10)
        assert recorder.heard == ["lost"]

    @pytest.mark.parametrize("data", [b"\n\n", b"x", b"QUERY\n\n", b"NOTIFY\nPort:x\n\n"])
    def test_busy(self, data: bytes) -> None:
        """Whatever it sends instead of a login, keepalives too (I14)."""
        client, _ = self.connect(known=False)
        for _ in range(20):
            self.advance(0.49)
            client.send(data)
        assert not client.closed
        self.advance(0.2)
        assert client.closed

    def test_logged_in(self) -> None:
        """After login it lasts."""
        client, recorder = self.connect(known=False)
        self.advance(9)
        recorder.stream.authenticated()
        recorder.stream.authenticated()
        self.advance(1000)
        assert not client.closed

    def test_as_set(self) -> None:
        """The time is that of the hub; connections of our own have none."""
        self.hub = ConnectionHub(self.clock, login_timeout=120)
        client, _ = self.connect(known=False)
        self.closes_after(client, 120)
        self.hub = ConnectionHub.of_client(self.clock)
        client, recorder = self.connect(known=False)
        self.advance(1000)
        assert not client.closed
        assert recorder.stream.decoder.limits == AUTHENTICATED

    def test_stop(self) -> None:
        """A server that stops closes on those, too."""
        client, _ = self.connect(known=False)
        self.hub.stop()
        assert client.closed


class KeepaliveTests(Streaming):
    """Two empty lines in a row."""

    @pytest.mark.parametrize("typed", ["\r\n\r\n", "\n\n", "\r\n\n"])
    def test_answer(self, typed: str) -> None:
        """They are answered by one CRLF, and nobody hears of them."""
        client, recorder = self.connect()
        client.type(typed)
        assert client.bytes() == b"\r\n"
        assert recorder.heard == []

    def test_single(self) -> None:
        """One empty line is no keepalive, however often it stands between messages."""
        client, _ = self.connect()
        for _ in range(3):
            client.type("\n")
            client.send(QUERY)
        assert client.bytes() == b""

    def test_silence(self) -> None:
        """Who ever sent one has gone when nothing came for 2 times 100 seconds."""
        client, _ = self.connect()
        client.type("\n\n")
        self.closes_after(client, 200)

    @pytest.mark.parametrize("data", [b"\n\n", b"\n", b"QUERY\nSTATUS\n\n", b"Q", b"Port:x\n\n"])
    def test_sign_of_life(self, data: bytes) -> None:
        """Whatever comes is a sign of life."""
        client, _ = self.connect()
        client.type("\n\n")
        for _ in range(5):
            self.advance(150)
            assert not client.closed
            client.send(data)
        self.advance(200)
        assert client.closed

    def test_never_sent_one(self) -> None:
        """Who never sent one may be silent for ever: TCP's keepalive looks after it."""
        client, _ = self.connect()
        client.send(QUERY)
        self.advance(100_000)
        assert not client.closed


class SourcesTests(Streaming):
    """How many connections an address may have (I15)."""

    def fill(self, count: int, host: str, *, known: bool = False) -> list[Client]:
        """Connect so many from one host."""
        return [self.connect(host, known=known)[0] for _ in range(count)]

    def test_strangers(self) -> None:
        """Twenty that have not logged in, for each IPv4 address; one gone lets one more in."""
        first, *_ = self.fill(20, "192.0.2.1")
        with pytest.raises(ConnectError):
            self.connect("192.0.2.1", known=False)
        self.fill(20, "192.0.2.2")
        first.vanish()
        self.fill(1, "192.0.2.1")
        with pytest.raises(ConnectError):
            self.connect("192.0.2.1", known=False)

    def test_known(self) -> None:
        """Two hundred in all; a login makes room among the strangers, and not here."""
        first, *_ = self.fill(200, "192.0.2.1", known=True)
        with pytest.raises(ConnectError):
            self.connect("192.0.2.1")
        first.vanish()
        self.fill(1, "192.0.2.1", known=True)
        with pytest.raises(ConnectError):
            self.connect("192.0.2.1")

    def test_nothing_stays_behind(self) -> None:
        """When all are gone nothing is kept of the address (I15)."""
        clients = self.fill(5, "192.0.2.1") + self.fill(5, "192.0.2.1", known=True)
        assert len(self.hub.sources) == 1
        for client in clients:
            client.vanish()
        assert len(self.hub.sources) == 0

    def test_ipv6(self) -> None:
        """An IPv6 /56 counts as one source, whatever its hosts call themselves."""
        for number in range(20):
            self.connect(f"2001:db8:0:{number:x}::{number + 1:x}", known=False)
        with pytest.raises(ConnectError):
            self.connect("2001:db8:0:ff::1", known=False)
        self.connect("2001:db8:0:100::1", known=False)

    def test_mapped(self) -> None:
        """An IPv4 address that comes over IPv6 is that address."""
        self.fill(10, "192.0.2.1")
        self.fill(10, "::ffff:192.0.2.1")
        with pytest.raises(ConnectError):
            self.connect("192.0.2.1", known=False)

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
    def test_loopback(self, host: str) -> None:
        """Loopback is exempt."""
        self.fill(250, host)

    @pytest.mark.parametrize(
        ("address", "source"),
        [
            (IPv4Address("TCP", "192.0.2.1", 5), "192.0.2.1"),
            (IPv4Address("TCP", "127.0.0.1", 5), None),
            (IPv6Address("TCP", "2001:db8:1:2ff::5", 5), "2001:db8:1:200::/56"),
            (IPv6Address("TCP", "fe80::1%eth0", 5), "fe80::/56"),
            (IPv6Address("TCP", "::ffff:192.0.2.1", 5), "192.0.2.1"),
            (IPv6Address("TCP", "::1", 5), None),
            (UNIXAddress(b"/run/broker"), None),
            (None, None),
        ],
    )
    def test_source_of(self, address: IAddress | None, source: str | None) -> None:
        """Whom a connection counts for."""
        assert source_of(address) == source


@implementer(IHalfCloseableProtocol)
class Raw(Protocol):
    """Takes over a connection."""

    def __init__(self) -> None:
        self.got = b""
        self.ends: list[str] = []
        self.pause = False

    def connectionMade(self) -> None:
        """The connection is ours now."""
        if self.pause:
            self._tcp.pauseProducing()

    @property
    def _tcp(self) -> Any:
        return self.transport

    def dataReceived(self, data: bytes) -> None:
        """Bytes that are no messages."""
        self.got += data

    def readConnectionLost(self) -> None:
        """The peer sends nothing more."""
        self.ends.append("read")

    def writeConnectionLost(self) -> None:
        """We send nothing more."""

    def connectionLost(self, reason: Failure | None = None) -> None:
        """The connection is gone."""
        self.ends.append("lost")


class HandOverTests(Streaming):
    """A connection on which something other than messages follows."""

    def handed(self) -> tuple[Client, Recorder, Raw]:
        """A client whose first message hands it over."""
        client, recorder = self.connect(known=False)
        raw = Raw()

        def hand_over(message: Message) -> None:
            if message == QUERY:
                recorder.stream.send(NOTICE)
                recorder.stream.hand_over(raw)

        recorder.on_message = hand_over
        return client, recorder, raw

    def test_rest(self) -> None:
        """What follows the message goes to the other protocol just as it came."""
        client, recorder, raw = self.handed()
        client.send(QUERY.encode() + b"\r\n\r\n\x00\xff")
        client.send(b"QUERY\n\n")
        assert raw.got == b"\r\n\r\n\x00\xffQUERY\n\n"
        assert client.received() == [NOTICE]
        raw._tcp.write(b"raw")
        assert client.bytes() == b"raw"
        client.end_input()
        assert raw.ends == ["read"]
        assert not client.closed
        client.vanish()
        assert raw.ends == ["read", "lost"]
        assert recorder.heard == [QUERY, "lost"]

    def test_no_deadline(self) -> None:
        """None of the stream's deadlines holds any more, nor its cap."""
        client, _, raw = self.handed()
        client.send(b"\n\n" + QUERY.encode())
        client.transport.stop_reading_peer()
        raw._tcp.write(b"x" * 500_000)
        self.advance(1000)
        assert not client.closed

    def test_after_many(self) -> None:
        """Handed over in a later turn, it is read from as the other protocol wants it."""
        for pause in (False, True):
            client, _, raw = self.handed()
            raw.pause = pause
            client.send(Message("NOTIFY", "Hello.").encode() * 64 + QUERY.encode())
            client.send(b"rest")
            assert raw.got == (b"" if pause else b"rest")
            assert client.transport.reading is not pause

    def test_input_ended_before(self) -> None:
        """Where the input had ended, the other protocol is told, and nobody else."""
        _, recorder, raw = self.handed()
        recorder.stream.hold()
        # As TLS may: what had been decrypted is handed over in spite of a pause.
        recorder.stream.dataReceived(QUERY.encode() + b"rest")
        recorder.stream.readConnectionLost()
        assert recorder.heard == []
        recorder.stream.go_on()
        settle(self.clock)
        assert raw.got == b"rest"
        assert raw.ends == ["read"]
        assert recorder.heard == [QUERY]


class FactoryTests(Streaming):
    """What makes streams."""

    def test_stream(self) -> None:
        """Each connection has a stream and a receiver of its own."""
        factory = ConnectionFactory(self.hub, Recorder)
        factory.doStart()
        one, two = factory.buildProtocol(None), factory.buildProtocol(None)
        assert isinstance(one, PeerConnection)
        assert isinstance(two, PeerConnection)
        assert one.receiver is not two.receiver
        factory.doStop()
