"""TLS over a transport, and a connection over it (broker.net.tls.transport)."""

from __future__ import annotations

from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure

from broker.messages.message import Message
from broker.net.connection import ConnectionFactory, PeerConnection
from broker.net.hub import ConnectionHub
from broker.net.tls.contexts import ClientTls
from broker.net.tls.errors import HandshakeRefused, HandshakeTimedOut, TlsFailed
from broker.net.tls.explain import explain
from broker.net.tls.transport import TlsEndpoint, TlsFactory, certificate_of, is_encrypted
from tests.net.recorder import Recorder, Talk
from tests.net.tls.handshakes import Echo, Meeting, Trust, meets
from tests.support.certificates import Foreign, foreign_client, foreign_server, meet
from tests.support.clock import advance
from tests.support.reactor import FakeReactor
from tests.support.transport import Client, FakeTransport, Pair, connect


class TransportTests:
    """TLS under the protocols of the product."""

    def test_both_ours(self, trust: Trust) -> None:
        """Both sides of ours speak with each other, a byte at a time."""
        server = Meeting(trust.asking(required=True))
        client = Meeting(trust.client(**trust.terminal._asdict()))
        client.clock = server.clock
        ends = [
            FakeTransport(one.tls.buildProtocol(None), server.clock, peer_reads=False)  # type: ignore[arg-type]
            for one in (server, client)
        ]
        for end in ends:
            end.start()
        transport: Any = client.echo.transport
        transport.write(b"x")
        pair = Pair(ends[0], ends[1], server.clock, chunk=1)
        for _ in range(20_000):
            pair.step()
            if len(server.echo.heard) >= 2:
                break
        assert server.echo.heard[:2] == b"xx"
        assert client.echo.heard[:1] == b"x"

    @pytest.mark.parametrize(
        ("is_client", "said"), [(False, b""), (False, b"\x16\x03\x01\x02"), (True, b"")]
    )
    def test_handshake_deadline(self, trust: Trust, is_client: bool, said: bytes) -> None:
        """A peer that connects and says nothing, or half of it, is cut off after 5 s (I14); a
        server that says nothing is given up as well.
        """
        meeting = Meeting(trust.client() if is_client else trust.server())
        peer = meeting.connect()
        peer.send(said)
        advance(meeting.clock, 4.9)
        assert not peer.closed
        advance(meeting.clock, 0.2)
        assert peer.closed
        assert peer.transport.aborted
        assert meeting.why == str(HandshakeTimedOut())
        assert not meeting.clock.getDelayedCalls()

    @pytest.mark.parametrize("is_client", [False, True])
    def test_no_deadline_after(self, trust: Trust, is_client: bool) -> None:
        """Once the handshake is over that deadline is lifted, for server and client."""
        if is_client:
            meeting = meets(trust.client(), foreign_server(trust.own))
        else:
            meeting = meets(trust.server(), foreign_client(trust.pki.ca))
        advance(meeting.clock, 3600)
        assert not meeting.peer.closed

    def test_stopped(self, trust: Trust) -> None:
        """A port that closes leaves no handshake and no timer behind; where the factory above wants
        no connection there is none (I15).
        """
        unwilling: Any = Factory()
        unwilling.buildProtocol = lambda addr: None
        assert TlsFactory(trust.server(), unwilling, Clock()).buildProtocol(None) is None
        meeting = Meeting(trust.server())
        factory: Any = meeting.tls
        factory.doStart()
        peer = meeting.connect()
        factory.doStop()
        assert peer.closed
        assert not meeting.clock.getDelayedCalls()

    def test_endpoint(self, trust: Trust) -> None:
        """A client connects through any endpoint; what it says at once waits for the handshake."""
        reactor: Any = FakeReactor()
        made: list[Any] = []
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", 1201)
        wrapped = TlsEndpoint(trust.client(), endpoint, reactor)
        wrapped.connect(Factory.forProtocol(Echo)).addCallback(made.append)
        peer = reactor.dials[0].accept()
        (echo,) = made
        assert isinstance(echo, Echo)
        transport: Any = echo.transport
        transport.write(b"REGISTER")
        assert b"REGISTER" not in b"".join(peer.transport.writes)
        foreign = foreign_server(trust.own)
        foreign.talk(peer)
        assert foreign.received == b"REGISTER"

    def test_encrypted(self, trust: Trust) -> None:
        """What is TLS is known as such, before and after the handshake; what isn't, isn't (I25)."""
        meeting = Meeting(trust.server())
        peer = meeting.connect()
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
        self.clock = Clock()
        self.hub = ConnectionHub(self.clock)
        self.made: list[Recorder] = []

    def receiver(self, stream: PeerConnection) -> Recorder:
        """What hears a new connection."""
        self.made.append(Recorder(stream))
        return self.made[-1]

    def meet(
        self, trust: Trust, foreign: Foreign | None = None, *, say: bytes = b""
    ) -> tuple[Client, PeerConnection]:
        """One connection, secured."""
        factory = TlsFactory(trust.server(), ConnectionFactory(self.hub, self.receiver), self.clock)
        peer = meet(factory, self.clock, foreign or foreign_client(trust.pki.ca), say=say)
        return peer, self.made[-1].stream

    def test_messages(self, trust: Trust) -> None:
        """Messages pass over TLS; the transport's own switches reach the connection below."""
        foreign = foreign_client(trust.pki.ca)
        message = Message("QUERY", Identifier="Ia", Callee="Ib")
        peer, stream = self.meet(trust, foreign, say=message.encode() * 3)
        (recorder,) = self.made
        assert recorder.heard == [message] * 3
        assert peer.transport.no_delay
        assert peer.transport.keep_alive
        stream.write(b"answer")
        foreign.talk(peer)
        assert foreign.received == b"answer"
        stream.hold()
        foreign.talk(peer, say=message.encode())
        assert peer.transport.waiting > 0
        assert len(recorder.heard) == 3
        stream.go_on()
        foreign.talk(peer)
        assert len(recorder.heard) == 4
        advance(self.clock, 11)
        assert peer.closed, "the login deadline holds over TLS too"

    def test_secure(self, trust: Trust) -> None:
        """It knows that it is encrypted, and once it is gone that it isn't (I25)."""
        peer, stream = self.meet(trust)
        assert stream.secure
        peer.vanish()
        assert not stream.secure

    @pytest.mark.parametrize(("known", "most"), [(False, 4096), (True, 65536)])
    def test_output_limit(self, trust: Trust, known: bool, most: int) -> None:
        """A stranger that doesn't read is cut off at 4 KiB, one that is known has more (I15)."""
        peer, stream = self.meet(trust)
        if known:
            stream.authenticated()
        assert peer.transport.bufferSize == most
        peer.transport.stop_reading_peer()
        stream.write(b"x" * 5000)
        advance(self.clock, 8 if known else self.hub.unauthenticated.stalled + 0.1)
        assert peer.closed is not known

    def test_closed_while_held(self, trust: Trust) -> None:
        """Closing reads on, though nothing was to be read, so that the peer's end is seen."""
        foreign = foreign_client(trust.pki.ca)
        peer, stream = self.meet(trust, foreign)
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

    def test_refused(self, trust: Trust) -> None:
        """Why TLS ended a connection reaches the receiver and the log, a line a second (I15)."""
        with capturedLogs() as events:
            for seconds in (0, 0, 1.1, 0):
                self.meet(trust, foreign_client(trust.other.ca))
                advance(self.clock, seconds)
        why = "the peer has refused: no authority that it trusts has issued our certificate"
        reason = self.made[0].reason
        assert reason is not None
        assert reason.check(TlsFailed)
        assert str(reason.value) == why
        assert [formatEvent(event) for event in events] == [
            f"TLS with this machine failed: {why}",
            f"TLS with this machine failed: {why} (2 more since the last such line)",
        ]

    def test_questions_are_told(self, trust: Trust) -> None:
        """Who waits for an answer learns that it was TLS, not just that there is none."""
        tls = ClientTls(trust.other.ca, "localhost")
        hub = ConnectionHub.of_client(self.clock)
        peer = connect(TlsFactory(tls, ConnectionFactory(hub, Asking), self.clock), self.clock)
        wrapper: Any = peer.protocol
        answer = wrapper.wrappedProtocol.receiver.ask(Message("QUERY", "STATUS"))
        foreign_server(trust.own).talk(peer)
        failed: list[Failure] = []
        answer.addErrback(failed.append)
        assert failed[0].check(TlsFailed)
        assert str(failed[0].value).endswith("it was not issued by a trusted authority")


class Asking(Talk):
    """A conversation that passes on why its connection was lost."""

    def connection_lost(self, reason: Failure) -> None:
        self.lost(reason)
