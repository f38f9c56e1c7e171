"""TLS over a transport, and a connection over it (broker.net.tls.transport)."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.messages.message import Message
from broker.net.connection import ConnectionFactory, PeerConnection
from broker.net.hub import ConnectionHub
from broker.net.tls.contexts import ClientTls, ServerTls
from broker.net.tls.errors import HandshakeRefused, HandshakeTimedOut, TlsFailed
from broker.net.tls.explain import explain
from broker.net.tls.transport import TlsEndpoint, TlsFactory, certificate_of, is_encrypted
from tests.net.recorder import Recorder, Talk
from tests.net.tls.handshakes import (
    Echo,
    Meeting,
)
from tests.support.certificates import Files, Pki, foreign_client, foreign_server, meet
from tests.support.clock import advance
from tests.support.transport import Client, FakeTransport, Pair, connect


class NoFactory(Factory):
    """Wants no connection."""

    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> None:
        return None


@implementer(IStreamClientEndpoint)
class InMemory:
    """An endpoint that connects to nobody, yet."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.client: Client | None = None

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        """Connect."""
        self.client = connect(protocolFactory, self.clock)
        return succeed(self.client.protocol)


class TransportTests:
    """TLS under the protocols of the product."""

    def test_both_ours(self, pki: Pki, own: Files, terminal: Files) -> None:
        """Both sides of ours speak with each other, a byte at a time."""
        server = Meeting(ServerTls(*own, client_ca=pki.ca, crl=pki.crl, required=True))
        client = Meeting(ClientTls(pki.ca, "localhost", certificate=terminal[0], key=terminal[1]))
        clock = server.clock
        client.clock = clock
        ends = [
            FakeTransport(one.tls.buildProtocol(None), clock, peer_reads=False)  # type: ignore[arg-type]
            for one in (server, client)
        ]
        for end in ends:
            end.start()
        transport: Any = client.echo.transport
        transport.write(b"x")
        pair = Pair(ends[0], ends[1], clock, chunk=1)
        for _ in range(20_000):
            pair.step()
            if len(server.echo.heard) >= 2:
                break
        assert server.echo.heard[:2] == b"xx"
        assert client.echo.heard[:1] == b"x"

    def test_handshake_deadline(self, own: Files) -> None:
        """A peer that connects and says nothing, or half of it, is cut off after 5 s (I14)."""
        for said in (b"", b"\x16\x03\x01\x02"):
            meeting = Meeting(ServerTls(*own))
            peer = connect(meeting.tls, meeting.clock)
            peer.send(said)
            advance(meeting.clock, 4.9)
            assert not peer.closed
            advance(meeting.clock, 0.2)
            assert peer.closed
            assert peer.transport.aborted
            assert meeting.why == str(HandshakeTimedOut())
            assert not meeting.clock.getDelayedCalls()

    def test_no_deadline_after(self, pki: Pki, own: Files) -> None:
        """Once the handshake is over that deadline is lifted, for server and client."""
        meeting = Meeting(ServerTls(*own))
        foreign = foreign_client(pki.ca)
        peer = meet(meeting.tls, meeting.clock, foreign)
        advance(meeting.clock, 3600)
        assert not peer.closed
        meeting = Meeting(ClientTls(pki.ca, "localhost"))
        peer = meet(meeting.tls, meeting.clock, foreign_server(own))
        advance(meeting.clock, 3600)
        assert not peer.closed

    def test_client_deadline(self, pki: Pki) -> None:
        """A server that says nothing is given up as well."""
        meeting = Meeting(ClientTls(pki.ca, "localhost"))
        peer = connect(meeting.tls, meeting.clock)
        advance(meeting.clock, 5.1)
        assert peer.closed
        assert meeting.why == str(HandshakeTimedOut())

    def test_stopped(self, own: Files) -> None:
        """A port that closes leaves no handshake and no timer behind."""
        meeting = Meeting(ServerTls(*own))
        factory: Any = meeting.tls
        factory.doStart()
        peer = connect(factory, meeting.clock)
        factory.doStop()
        assert peer.closed
        assert not meeting.clock.getDelayedCalls()

    def test_source_at_its_limit(self, own: Files) -> None:
        """Where the factory above wants no connection there is none (I15)."""
        assert TlsFactory(ServerTls(*own), NoFactory(), Clock()).buildProtocol(None) is None

    def test_endpoint(self, pki: Pki, own: Files) -> None:
        """A client connects through any endpoint; what it says at once waits for the handshake."""
        clock = Clock()
        endpoint = InMemory(clock)
        tls = ClientTls(pki.ca, "localhost")
        made: list[Any] = []
        wrapped = TlsEndpoint(tls, endpoint, clock)
        wrapped.connect(Factory.forProtocol(Echo)).addCallback(made.append)
        assert isinstance(made[0], Echo)
        transport: Any = made[0].transport
        transport.write(b"REGISTER")
        assert endpoint.client is not None
        assert b"REGISTER" not in endpoint.client.transport.writes[0]
        foreign = foreign_server(own)
        foreign.talk(endpoint.client)
        assert foreign.received == b"REGISTER"

    def test_stream(self, pki: Pki, own: Files) -> None:
        """Messages pass over TLS; the transport's own switches reach the connection below."""
        clock = Clock()
        made: list[Recorder] = []

        def receiver(stream: PeerConnection) -> Recorder:
            made.append(Recorder(stream))
            return made[-1]

        factory = TlsFactory(
            ServerTls(*own), ConnectionFactory(ConnectionHub(clock), receiver), clock
        )
        foreign = foreign_client(pki.ca)
        message = Message("QUERY", Identifier="Ia", Callee="Ib")
        peer = meet(factory, clock, foreign, say=message.encode() * 3)
        assert len(made[0].heard) == 3
        assert peer.transport.no_delay
        assert peer.transport.keep_alive
        made[0].stream.write(b"answer")
        foreign.talk(peer)
        assert foreign.received == b"answer"
        made[0].stream.hold()
        foreign.talk(peer, say=message.encode())
        assert peer.transport.waiting > 0
        assert len(made[0].heard) == 3
        made[0].stream.go_on()
        foreign.talk(peer)
        assert len(made[0].heard) == 4
        advance(clock, 11)
        assert peer.closed, "the login deadline holds over TLS too"

    def test_encrypted(self, pki: Pki, own: Files) -> None:
        """What is TLS is known as such, before and after the handshake; what isn't, isn't (I25)."""
        meeting = Meeting(ServerTls(*own))
        peer = connect(meeting.tls, meeting.clock)
        assert is_encrypted(meeting.echo.transport)
        assert not is_encrypted(peer.transport)
        assert not is_encrypted(None)
        assert certificate_of(peer.transport) is None

    def test_other_errors(self) -> None:
        """What TLS has nothing to do with is not explained by it."""
        assert explain(ConnectionResetError()) is None
        assert explain(HandshakeRefused("it x")) == "the peer's certificate is refused: it x"
        strange = SSL.Error([("SSL routines", "", "something\x1b new")])
        assert explain(strange) == "TLS failed: something\\u001b new"
        assert explain(SSL.Error([])) == "TLS failed: Error"
        assert explain(SSL.SysCallError(-1, "Unexpected EOF")) == "TLS failed: Unexpected EOF"


class StreamTests:
    """``PeerConnection`` over TLS: what holds over plain TCP holds here."""

    def setup_method(self) -> None:
        """Nobody is connected yet."""
        self.clock = Clock()
        self.hub = ConnectionHub(self.clock)
        self.made: list[Recorder] = []

    def meet(self, own: Files, foreign: Any) -> tuple[Client, PeerConnection]:
        """One connection, secured."""

        def receiver(stream: PeerConnection) -> Recorder:
            self.made.append(Recorder(stream))
            return self.made[-1]

        factory = TlsFactory(ServerTls(*own), ConnectionFactory(self.hub, receiver), self.clock)
        peer = meet(factory, self.clock, foreign)
        return peer, self.made[-1].stream

    def test_secure(self, pki: Pki, own: Files) -> None:
        """It knows that it is encrypted, and once it is gone that it isn't (I25)."""
        peer, stream = self.meet(own, foreign_client(pki.ca))
        assert stream.secure
        peer.vanish()
        assert not stream.secure

    def test_output_limit(self, pki: Pki, own: Files) -> None:
        """A stranger that doesn't read is cut off at 4 KiB, one that is known has more (I15)."""
        peer, stream = self.meet(own, foreign_client(pki.ca))
        assert peer.transport.bufferSize == self.hub.unauthenticated.output
        peer.transport.stop_reading_peer()
        stream.write(b"x" * 5000)
        advance(self.clock, self.hub.unauthenticated.stalled + 0.1)
        assert peer.closed
        peer, stream = self.meet(own, foreign_client(pki.ca))
        stream.authenticated()
        assert peer.transport.bufferSize == 65536
        peer.transport.stop_reading_peer()
        stream.write(b"x" * 5000)
        advance(self.clock, 8)
        assert not peer.closed

    def test_closed_while_held(self, pki: Pki, own: Files) -> None:
        """Closing reads on, though nothing was to be read, so that the peer's end is seen."""
        foreign = foreign_client(pki.ca)
        peer, stream = self.meet(own, foreign)
        stream.authenticated()
        stream.hold()
        stream.write(b"bye")
        stream.close()
        foreign.talk(peer)
        assert foreign.received == b"bye"
        assert not peer.closed
        foreign.tls.unwrap()  # its own end of TLS
        foreign.talk(peer)
        assert peer.closed
        assert not peer.transport.aborted

    def test_refused(self, pki: Pki, other: Pki, own: Files) -> None:
        """Why TLS ended a connection reaches the receiver and the log, a line a second (I15)."""
        with capturedLogs() as events:
            for _ in range(3):
                self.meet(own, foreign_client(other.ca))
            why = "the peer has refused: no authority that it trusts has issued our certificate"
            reason = self.made[0].reason
            assert reason is not None
            assert reason.check(TlsFailed)
            assert str(reason.value) == why
            advance(self.clock, 1.1)
            self.meet(own, foreign_client(other.ca))
        lines = [formatEvent(event) for event in events]
        assert lines == [
            f"TLS with this machine failed: {why}",
            f"TLS with this machine failed: {why} (2 more since the last such line)",
        ]

    def test_questions_are_told(self, pki: Pki, other: Pki, own: Files) -> None:
        """Who waits for an answer learns that it was TLS, not just that there is none."""
        hub = ConnectionHub.of_client(self.clock)
        tls = ClientTls(other.ca, "localhost")
        factory = TlsFactory(tls, ConnectionFactory(hub, Asking), self.clock)
        peer = connect(factory, self.clock)
        wrapper: Any = peer.protocol
        answer = wrapper.wrappedProtocol.receiver.ask(Message("QUERY", "STATUS"))
        foreign_server(own).talk(peer)
        failed: list[Failure] = []
        answer.addErrback(failed.append)
        assert failed[0].check(TlsFailed)
        assert str(failed[0].value).endswith("it was not issued by a trusted authority")


class Asking(Talk):
    """A conversation that passes on why its connection was lost."""

    def connection_lost(self, reason: Failure) -> None:
        self.lost(reason)
