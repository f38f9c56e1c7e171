"""The protocol over TCP (broker.net.connection), over transports in memory."""

from __future__ import annotations

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
from twisted.logger import capturedLogs
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


class Streaming:
    """A clock, a hub, and clients of it."""

    def setup_method(self) -> None:
        self.clock = Clock()
        self.hub = ConnectionHub(self.clock)

    def teardown_method(self) -> None:
        """No timer outlives the hub."""
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
        """A stream is a protocol that outlives its peer's input, and a producer of its output.

        Nothing waits in Nagle's algorithm, and a vanished host is noticed in the end.
        """
        client, recorder = self.connect()
        for interface in (IProtocol, IHalfCloseableProtocol, IPushProducer):
            assert verifyObject(interface, recorder.stream)
        assert client.transport.no_delay
        assert client.transport.keep_alive
        assert client.transport.producer is client.protocol
        assert client.transport.streaming

    def test_factory(self) -> None:
        """Each connection has a stream and a receiver of its own."""
        factory = ConnectionFactory(self.hub, Recorder)
        assert verifyObject(IProtocolFactory, factory)
        factory.doStart()
        one, two = factory.buildProtocol(None), factory.buildProtocol(None)
        assert isinstance(one, PeerConnection)
        assert isinstance(two, PeerConnection)
        assert one.receiver is not two.receiver
        factory.doStop()

    def test_lost(self) -> None:
        """The receiver learns that the connection is gone, and why; nothing is sent after it."""
        client, recorder = self.connect()
        stream = recorder.stream
        assert stream.connected
        stream.send(NOTICE)
        client.vanish()
        assert recorder.heard == ["lost"]
        assert recorder.lost_by(ConnectionLost)
        for act in (stream.flush, stream.close, stream.abort, stream.hold, stream.go_on):
            stream.send(NOTICE)
            act()
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

    @pytest.mark.parametrize("reads_on", [False, True])
    def test_close_with_much_unread(self, reads_on: bool) -> None:
        """A peer that reads on in time gets all that was written before the close; one that does
        not read is cut off after 10 seconds: a closed connection holds nothing for ever (I15).
        """
        client, recorder = self.connect()
        client.transport.stop_reading_peer()
        recorder.stream.write(b"x" * 100_000)
        recorder.stream.close()
        if reads_on:
            self.advance(9)
            client.transport.resume_reading_peer()
            assert client.closed
            assert client.bytes() == b"x" * 100_000
        else:
            self.closes_after(client, 10)
        assert client.transport.aborted is not reads_on

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

    def test_hold(self) -> None:
        """Held, nothing is heard and nothing is read; it goes on where it was."""
        client, recorder = self.connect()
        recorder.on_message = lambda _: recorder.stream.hold()
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
        with capturedLogs() as events:
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
        """Of one peer 64 events are handled at a time; then another has its turn (I16, I24). The
        end of input is heard after all that came before it.
        """
        assert EVENTS_A_TURN == 64
        client, recorder = self.connect()
        other, other_recorder = self.connect()
        client.feed(QUERY.encode() * 150)
        assert len(recorder.heard) == 64
        assert not client.transport.reading
        client.transport.end_input()
        other.feed(QUERY.encode())
        assert other_recorder.heard == [QUERY]
        turn(self.clock)
        assert len(recorder.heard) == 128
        turn(self.clock)
        assert len(recorder.heard) == 150
        settle(self.clock)
        assert recorder.heard == [QUERY] * 150 + ["ended"]
        client, recorder = self.connect()
        client.feed(QUERY.encode() * 65)
        turn(self.clock)
        assert client.transport.reading
        client.send(QUERY)
        assert len(recorder.heard) == 66

    @pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
    def test_empty_lines_a_turn(self, line_end: bytes) -> None:
        """The turn of a flood of empty lines is not longer than one of messages (I24)."""
        client, _ = self.connect()
        client.feed(line_end * 30_000)
        assert client.bytes() == b"\r\n" * 64
        settle(self.clock)
        assert client.bytes() == b"\r\n" * (15_000 - 64)

    def test_one_write(self) -> None:
        """What goes to one peer in one turn goes in one write; what is sent without anything having
        come in leaves together, in the next turn.
        """
        client, recorder = self.connect()
        other, other_recorder = self.connect()

        def answer(message: Message) -> None:
            recorder.stream.send(NOTICE)
            other_recorder.stream.send(QUERY)

        recorder.on_message = answer
        client.feed(QUERY.encode() * 3)
        assert client.transport.writes == [NOTICE.encode() * 3]
        assert other.transport.writes == [QUERY.encode() * 3]
        for message in (NOTICE, QUERY):
            recorder.stream.send(message)
        assert len(client.transport.writes) == 1
        self.clock.advance(0)
        assert client.transport.writes[1:] == [NOTICE.encode() + QUERY.encode()]

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

    @pytest.mark.parametrize(
        ("known", "octets", "seconds"), [(True, 256 * 1024, 10), (False, 4096, 5)]
    )
    def test_cap_and_deadline(self, known: bool, octets: int, seconds: float) -> None:
        """After login 256 KiB may wait, before it 4 KiB, not a byte more; after login a peer has 10
        seconds to read, before it 5 (I14, I15).
        """
        client, recorder = self.stalled(known=known)
        for _ in range(4):
            self.fill(recorder, octets // 4)
        assert not client.closed
        self.fill(recorder, 1)
        assert client.closed
        assert client.transport.aborted
        assert recorder.heard == ["lost"]
        client, _ = self.stalled(known=known)
        self.closes_after(client, seconds)
        assert client.transport.aborted

    def test_deadline_is_not_put_off(self) -> None:
        """It runs from when the peer stopped reading, whatever is written after that."""
        client, recorder = self.stalled()
        for _ in range(9):
            self.advance(1)
            self.fill(recorder, 100)
        self.advance(1)
        assert client.closed

    def test_reads_on(self) -> None:
        """A peer that reads in time goes on, with its cap and deadline as at the start."""
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
        client, recorder = self.connect()
        client.transport.stop_reading_peer()
        self.fill(recorder, 1000)
        self.advance(60)
        assert not client.closed, "a peer that has little to read may take its time"

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

        # A peer that reads has all of the long answers.
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

    @pytest.mark.parametrize("data", [b"", b"\n\n", b"x", b"QUERY\n\n", b"NOTIFY\nPort:x\n\n"])
    def test_no_login(self, data: bytes) -> None:
        """Without a login a connection lasts 10 seconds, whatever it sends instead of one,
        keepalives too (I14). After login it lasts.
        """
        client, _ = self.connect(known=False)
        known, recorder = self.connect(known=False)
        for _ in range(20):
            self.advance(0.49)
            client.send(data)
        assert not client.closed
        for _ in range(2):
            recorder.stream.authenticated()
        self.advance(0.2)
        assert client.closed
        self.advance(1000)
        assert not known.closed

    def test_as_set(self) -> None:
        """The time is that of the hub; connections of our own have none. A server that stops closes
        on those, too.
        """
        self.hub = ConnectionHub(self.clock, login_timeout=120)
        client, _ = self.connect(known=False)
        self.closes_after(client, 120)
        client, _ = self.connect(known=False)
        self.hub.stop()
        assert client.closed
        self.hub = ConnectionHub.of_client(self.clock)
        client, recorder = self.connect(known=False)
        self.advance(1000)
        assert not client.closed
        assert recorder.stream.decoder.limits == AUTHENTICATED


class KeepaliveTests(Streaming):
    """Two empty lines in a row."""

    @pytest.mark.parametrize("typed", ["\r\n\r\n", "\n\n", "\r\n\n"])
    def test_answer(self, typed: str) -> None:
        """They are answered by one CRLF, and no receiver hears of them; a peer that ever sent one
        has gone when nothing came for 2 times 100 seconds.
        """
        client, recorder = self.connect()
        client.type(typed)
        assert client.bytes() == b"\r\n"
        assert recorder.heard == []
        self.closes_after(client, 200)

    @pytest.mark.parametrize("data", [b"\n\n", b"\n", b"QUERY\nSTATUS\n\n", b"Q", b"Port:x\n\n"])
    def test_sign_of_life(self, data: bytes) -> None:
        """All that comes is a sign of life."""
        client, _ = self.connect()
        client.type("\n\n")
        for _ in range(5):
            self.advance(150)
            assert not client.closed
            client.send(data)
        self.closes_after(client, 200)

    def test_never_sent_one(self) -> None:
        """A peer that never sent one may be silent for ever: TCP's keepalive looks after it."""
        client, _ = self.connect()
        client.send(QUERY)
        self.advance(100_000)
        assert not client.closed


class SourcesTests(Streaming):
    """How many connections an address may have (I15)."""

    def fill(self, count: int, host: str, *, known: bool = False) -> list[Client]:
        """Connect that many times from one host."""
        return [self.connect(host, known=known)[0] for _ in range(count)]

    @pytest.mark.parametrize(("known", "most"), [(False, 20), (True, 200)])
    def test_when_an_address_has_its_most_then_one_that_goes_lets_one_in(
        self, known: bool, most: int
    ) -> None:
        """Twenty that have not logged in, for each address; two hundred in all: a login makes room
        among the strangers, and not here. When all are gone nothing is kept of the address.
        """
        clients = self.fill(most, "192.0.2.1", known=known)
        for source in ("192.0.2.1", "::ffff:192.0.2.1"):
            with pytest.raises(ConnectError):
                self.connect(source, known=known)
        clients += self.fill(20, "192.0.2.2")
        clients[0].vanish()
        clients += self.fill(1, "192.0.2.1", known=known)
        with pytest.raises(ConnectError):
            self.connect("192.0.2.1", known=known)
        assert len(self.hub.sources) == 2
        for client in clients:
            client.vanish()
        assert len(self.hub.sources) == 0

    def test_loopback(self) -> None:
        """Loopback is exempt."""
        self.fill(250, "127.9.9.9")

    @pytest.mark.parametrize(
        ("address", "source"),
        [
            (IPv4Address("TCP", "192.0.2.1", 5), "192.0.2.1"),
            (IPv4Address("TCP", "127.0.0.1", 5), None),
            (IPv6Address("TCP", "2001:db8:1:200::1", 5), "2001:db8:1:200::/56"),
            (IPv6Address("TCP", "2001:db8:1:2ff::5", 5), "2001:db8:1:200::/56"),
            (IPv6Address("TCP", "2001:db8:1:300::1", 5), "2001:db8:1:300::/56"),
            (IPv6Address("TCP", "fe80::1%eth0", 5), "fe80::/56"),
            (IPv6Address("TCP", "::ffff:192.0.2.1", 5), "192.0.2.1"),
            (IPv6Address("TCP", "::ffff:127.0.0.1", 5), None),
            (IPv6Address("TCP", "::1", 5), None),
            (UNIXAddress(b"/run/broker"), None),
            (None, None),
        ],
    )
    def test_source_of(self, address: IAddress | None, source: str | None) -> None:
        """Which source a connection counts for: an IPv6 /56 is one, whatever its hosts call
        themselves; an IPv4 address that comes over IPv6 is that address.
        """
        assert source_of(address) == source


@implementer(IHalfCloseableProtocol)
class Raw(Protocol):
    """Takes over a connection."""

    transport: Any

    def __init__(self) -> None:
        self.got = b""
        self.ends: list[str] = []
        self.pause = False

    def connectionMade(self) -> None:
        if self.pause:
            self.transport.pauseProducing()

    def dataReceived(self, data: bytes) -> None:
        self.got += data

    def readConnectionLost(self) -> None:
        self.ends.append("read")

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure | None = None) -> None:
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
        raw.transport.write(b"raw")
        assert client.bytes() == b"raw"
        client.end_input()
        assert raw.ends == ["read"]
        assert not client.closed
        client.vanish()
        assert raw.ends == ["read", "lost"]
        assert recorder.heard == [QUERY, "lost"]

    def test_no_deadline(self) -> None:
        """The stream's deadlines and its cap do not hold now."""
        client, _, raw = self.handed()
        client.send(b"\n\n" + QUERY.encode())
        client.transport.stop_reading_peer()
        raw.transport.write(b"x" * 500_000)
        self.advance(1000)
        assert not client.closed

    @pytest.mark.parametrize("pause", [False, True])
    def test_after_many(self, pause: bool) -> None:
        """Handed over in a later turn, it is read from as the other protocol wants it."""
        client, _, raw = self.handed()
        raw.pause = pause
        client.send(Message("NOTIFY", "Hello.").encode() * 64 + QUERY.encode())
        client.send(b"rest")
        assert raw.got == (b"" if pause else b"rest")
        assert client.transport.reading is not pause

    def test_input_ended_before(self) -> None:
        """Where the input had ended, the other protocol is told, and no receiver."""
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
