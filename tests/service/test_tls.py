"""TLS of the roles: their settings, and certificates that change or expire while a role runs."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
)
from twisted.internet.interfaces import IHostnameResolver
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from zope.interface import implementer

from broker.net.tls.contexts import ServerTls
from broker.service import mediator
from broker.service.errors import CannotStart
from broker.service.reactor import EpollReactor
from broker.service.settings import tls as tls_settings
from broker.service.settings.values import parse_server
from tests.integration.test_addresses import has_ipv6
from tests.service.scene import (
    LOOPBACK_TLS,
    MEDIATOR,
    RESOLVER,
    Scene,
    a_file,
    a_mediator,
    pair,
    parse,
)
from tests.support.certificates import Files, Pki, foreign_client, meet
from tests.support.clock import advance
from tests.support.reactor import FakeReactor
from tests.support.transport import Client, connect, tcp_address
from tests.terminal.network import Outcome
from tests.terminal.outgoing.test_hole_punch import Site
from tests.terminal.speakers import Maker


def test_changed_since(tmp_path: Path, own: Files) -> None:
    """Files that went bad after the options were read are why a role doesn't start."""
    key = a_file(tmp_path / "key", Path(own.key).read_bytes())
    options: Any = parse(MEDIATOR, LOOPBACK_TLS, *pair(Files(own.certificate, str(key))))
    key.unlink()
    store: Any = None
    with pytest.raises(CannotStart, match=f"{key}: No such file"):
        mediator.MediatorService(FakeReactor(), options, store)


class ServingTests:
    """The roles over TLS."""

    def resolver(self, own: Files, pki: Pki, *more: str) -> Scene:
        """A resolver that knows mediators by their certificates."""
        return Scene(RESOLVER, LOOPBACK_TLS, *pair(own), f"--client-ca={pki.ca}", *more)

    def says(
        self, scene: Scene, pki: Pki, say: str, shown: Files | None = None
    ) -> tuple[Client, bytes]:
        """A client of the second port, where TLS is spoken; the answer to what it says."""
        foreign = foreign_client(pki.ca, shown)
        factory = scene.reactor.tcpServers[1][1]
        client = meet(factory, scene.reactor, foreign, say=say.encode())
        return client, bytes(foreign.received)

    def test_mediator(self, pki: Pki, own: Files) -> None:
        """It serves over TLS as it does without, and leaves nothing behind (A21)."""
        scene = a_mediator(LOOPBACK_TLS, *pair(own))
        assert scene.ports == [1201, 1202]
        assert scene.service.listening.ports == {1201, 1202}
        port: Any = scene.reactor.tcpServers[1][1]
        port.doStart()  # as a real port does, and stops it when it closes
        _, answer = self.says(scene, pki, "REGISTER\nIdentifier:Ia\n\n")
        assert answer == b"NOTIFY\r\nRegistration Completed.\r\n\r\n"
        silent = connect(port, scene.reactor)  # in its handshake
        scene.service.stopService()
        port.doStop()
        assert silent.closed
        assert scene.reactor.getDelayedCalls() == []

    @pytest.mark.parametrize(
        ("whose", "secret", "taken"),
        [
            ("east", "", True),
            ("west", "", False),
            ("west", "Password:correct horse\n", False),
            ("terminal", "Password:correct horse\n", False),
            ("", "Password:correct horse\n", True),
            ("", "", False),
            ("", "Password:x\n", False),
            # Named mediators and no secret: to be on this machine proves nothing.
            ("", None, False),
        ],
    )
    def test_mediators(
        self, pki: Pki, own: Files, tmp_path: Path, whose: str, secret: str | None, taken: bool
    ) -> None:
        """A listed mediator's certificate, or without any the secret; a terminal's never (A15)."""
        option = f"--mediator-secret={a_file(tmp_path / 'secret')}"
        options = ["--mediators=east", *([] if secret is None else [option])]
        shown = pki.terminal("east") if whose == "terminal" else None
        if whose in {"east", "west"}:
            shown = pki.mediator(whose)
        say = f"REGISTER\nRole:Mediator\n{secret or ''}\n"
        _, answer = self.says(self.resolver(own, pki, *options), pki, say, shown)
        assert (b"Registration Completed." in answer) is taken
        assert (b"Permission Denied." in answer) is not taken

    def test_revoked_since(self, pki: Pki, own: Files) -> None:
        """A mediator whose certificate has been revoked loses its link at the reload (I2)."""
        options = (f"--revocation-list={pki.crl}", "--mediators=east", "--mediators=west")
        scene = self.resolver(own, pki, *options)
        bad, good = pki.mediator("east"), pki.mediator("west")
        first, second = (
            self.says(scene, pki, "REGISTER\nRole:Mediator\n\n", shown)[0] for shown in (bad, good)
        )
        pki.revoke(bad)
        scene.service.renewal.reload()
        assert (first.closed, second.closed) == (True, False)


class RenewalTests:
    """Files that are read again, and certificates that end."""

    def test_warnings(self, pki: Pki) -> None:
        """What ends within 14 days is told at the start and each day, and not before."""
        clock = Clock()
        own = pki.server(age=timedelta(days=383))
        ends = own.read.not_valid_after_utc
        now = [ends - timedelta(days=15)]
        renewal = tls_settings.Renewal(clock, ServerTls(*own, now=lambda: now[0]))
        with capturedLogs() as events:
            renewal.start()
            assert events == []
            now[0] += timedelta(days=2)
            advance(clock, 86400)
            renewal.stop()
        assert [formatEvent(event) for event in events] == [
            f"Certificates: the certificate in {own.certificate} ends in 13 days,"
            f" on {ends:%Y-%m-%d}"
        ]
        assert clock.getDelayedCalls() == []

    def test_without_tls(self) -> None:
        """Without TLS there is nothing to look at, and no timer."""
        clock = Clock()
        renewal = tls_settings.Renewal(clock, None)
        renewal.start()
        assert clock.getDelayedCalls() == []
        renewal.stop()


no_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")


@implementer(IHostnameResolver)
class Names:
    """Gives every name one address."""

    def __init__(self, host: str) -> None:
        self._host = host

    def resolveHostName(
        self,
        resolutionReceiver: Any,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Any = None,
        transportSemantics: str = "TCP",
    ) -> Any:
        """That one, at once."""
        resolutionReceiver.resolutionBegan(None)
        resolutionReceiver.addressResolved(tcp_address(self._host, portNumber))
        resolutionReceiver.resolutionComplete()


class EndpointTests:
    """How a server is connected to."""

    @pytest.mark.parametrize(
        ("text", "made", "bind"),
        [
            ("tcp:192.0.2.1:1201", TCP4ClientEndpoint, ""),
            ("tcp:[2001:db8::1]:1201", TCP6ClientEndpoint, ""),
            ("tcp:192.0.2.1:1201:bindAddress=192.0.2.9", TCP4ClientEndpoint, "192.0.2.9"),
            ("tcp:signal.example.com:1201:timeout=5", HostnameEndpoint, None),
        ],
    )
    def test_kinds(self, text: str, made: type[object], bind: str | None) -> None:
        """A name may have addresses of both families; an address is what it is. It is bound to a
        port first, so that no other connection has that port.
        """
        reactor = FakeReactor()
        found = tls_settings.endpoint(reactor, parse_server(text), None)
        assert isinstance(found, made)
        if bind is not None:
            found.connect(Maker())
            (dial,) = reactor.dials
            assert dial.bind == (bind, 0)

    @pytest.mark.integration
    @pytest.mark.parametrize("named", [False, True], ids=["address", "name"])
    @pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=no_ipv6)])
    def test_connects(self, host: str, named: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """From there a server is reached by either family, by its address and by its name."""
        site = Site(EpollReactor, host)
        bound: list[Any] = []
        connect_tcp = site.reactor.connectTCP

        def connects(*arguments: Any, bindAddress: Any = None, **others: Any) -> Any:
            bound.append(bindAddress)
            return connect_tcp(*arguments, bindAddress=bindAddress, **others)

        try:
            monkeypatch.setattr(site.reactor, "connectTCP", connects)
            site.reactor.installNameResolver(Names(host))
            listener = site.listens()
            said = "signal.example.com" if named else f"[{host}]" if ":" in host else host
            server = parse_server(f"tcp:{said}:{listener.getsockname()[1]}")
            outcome = Outcome(tls_settings.endpoint(site.reactor, server, None).connect(Maker()))
            site.ends(outcome)
            assert outcome.error is None
            assert bound == [("", 0)]
            _, remote_host_of = site.accepts(listener)
            ours = outcome.value.transport.getHost()
            assert (ours.host, ours.port) == remote_host_of
            assert remote_host_of[0] == host
        finally:
            site.close()
