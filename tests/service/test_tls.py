"""TLS of the roles: their settings, and certificates that change or expire while a role runs."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import execute
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
from broker.service import mediator, resolver, terminal
from broker.service.errors import CannotStart
from broker.service.reactor import EpollReactor
from broker.service.settings import tls as tls_settings
from broker.service.settings.credentials import Keyring
from broker.service.settings.options import RoleOptions
from broker.service.settings.values import parse_server
from tests.integration.test_addresses import has_ipv6
from tests.service.test_options import errors, parse
from tests.service.test_services import a_mediator, a_secret, options_of, start
from tests.support.certificates import Files, Pki, foreign_client, foreign_server, meet
from tests.support.clock import advance, settle
from tests.support.reactor import FakeReactor
from tests.support.transport import Client, connect, tcp_address
from tests.terminal.network import Outcome
from tests.terminal.outgoing.test_hole_punch import Site
from tests.terminal.speakers import Maker

LOOPBACK = "--listen-tls=tcp:1202:interface=127.0.0.1"
SERVERS = pytest.mark.parametrize("role", [mediator.Options, resolver.Options])


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """An authority."""
    return Pki(tmp_path_factory.mktemp("secured"))


@pytest.fixture(scope="module")
def own(pki: Pki) -> Files:
    """A server's certificate."""
    return pki.server()


def pair(files: Files) -> list[str]:
    """The options for a certificate and its key."""
    return [f"--certificate={files.certificate}", f"--private-key={files.key}"]


class SettingsTests:
    """What is wrong is told at once, a line each (I3)."""

    @SERVERS
    def test_good(self, role: type[RoleOptions], pki: Pki, own: Files) -> None:
        """All that TLS can be given."""
        options = parse(
            role, LOOPBACK, *pair(own), f"--client-ca={pki.ca}", f"--revocation-list={pki.crl}"
        )
        assert isinstance(tls_settings.server_tls(options), ServerTls)

    @SERVERS
    def test_missing(self, role: type[RoleOptions], own: Files) -> None:
        """Neither half of the pair can be left out."""
        name = role.role
        assert errors(role, LOOPBACK) == [
            f"{name}: --listen-tls: TLS needs --certificate and --private-key"
        ]
        assert errors(role, LOOPBACK, f"--certificate={own.certificate}") == [
            f"{name}: --listen-tls: TLS needs --private-key"
        ]
        assert errors(role, LOOPBACK, *pair(own), "--revocation-list=x")[0].endswith(
            "can't be checked without --client-ca"
        )

    @SERVERS
    def test_bad_files(self, role: type[RoleOptions], pki: Pki, own: Files, tmp_path: Path) -> None:
        """A file that isn't there, a key that others can read, a pair that doesn't match (I18)."""
        (missing,) = errors(role, LOOPBACK, *pair(Files("/no/where.pem", own.key)))
        assert missing == f"{role.role}: --listen-tls: /no/where.pem: No such file or directory"
        exposed = tmp_path / "exposed.key"
        exposed.write_bytes(Path(own.key).read_bytes())
        exposed.chmod(0o644)
        (readable,) = errors(role, LOOPBACK, *pair(Files(own.certificate, str(exposed))))
        assert f"{exposed}: others can read or change it" in readable
        (mismatched,) = errors(role, LOOPBACK, *pair(Files(own.certificate, pki.server().key)))
        assert "is not the certificate of the key in" in mismatched

    @SERVERS
    def test_without_a_listener(self, role: type[RoleOptions], own: Files) -> None:
        """A certificate that no client would see is an error (I25)."""
        assert errors(role, f"--certificate={own.certificate}") == [
            f"{role.role}: --certificate: needs --listen-tls"
        ]

    @SERVERS
    def test_beyond_this_machine(self, role: type[RoleOptions], own: Files) -> None:
        """TLS hides what is said, and doesn't prove who says it: it must be allowed (I25)."""
        (error,) = errors(role, "--listen-tls=tcp:1202", *pair(own), "--auth=none")
        assert "any identifier is believed, even over TLS" in error
        assert "in clear text:" not in error
        parse(role, "--listen-tls=tcp:1202", *pair(own), "--auth=none", "--allow-clear-text")

    def test_tls_alone(self, own: Files, tmp_path: Path) -> None:
        """A server may do without a place for clear text."""
        file = tmp_path / "broker.toml"
        file.write_text("listen = []\n")
        assert parse(mediator.Options, f"--config={file}", LOOPBACK, *pair(own))["listen"] == []

    def test_a_resolver_elsewhere(self, pki: Pki) -> None:
        """Over TLS another machine's resolver may be asked (I25)."""
        parse(mediator.Options, "--resolver=tls:192.0.2.1:1204", f"--resolver-ca={pki.ca}")
        assert errors(mediator.Options, f"--resolver-ca={pki.ca}") == [
            "broker: --resolver-ca: needs a resolver that is named as tls:HOST:PORT"
        ]
        (error,) = errors(
            mediator.Options, "--resolver=tls:192.0.2.1:1204", "--resolver-certificate=x"
        )
        assert error.endswith("a certificate needs its private key, and the key its certificate")

    def test_a_terminal(self, pki: Pki) -> None:
        """So is a terminal's mediator; an authority for clear text is a mistake."""
        options = parse(terminal.Options, "--mediator=tls:a.example:1202", f"--ca={pki.ca}")
        assert tls_settings.mediator_tls(options) is not None
        (error,) = errors(terminal.Options, "--identifier=Ib", f"--ca={pki.ca}")
        assert error.endswith("--ca: needs a mediator that is named as tls:HOST:PORT")

    def test_a_terminals_certificate(
        self, pki: Pki, own: Files, no_passwords_of_ours: Path
    ) -> None:
        """A terminal may prove itself by a certificate; no password is looked for then (A19)."""
        keyring = Keyring(no_passwords_of_ours / "broker")
        keyring.keep("Ib", "tls:localhost:1202", "kept").chmod(0o644)  # which would be refused
        files = pki.terminal("Ib")
        options = ["--mediator=tls:localhost:1202", f"--ca={pki.ca}", *pair(files)]
        parse(terminal.Options, *options, f"--revocation-list={pki.crl}")
        (error,) = errors(terminal.Options, "--identifier=Ib", *options[:3])
        assert error.endswith("a certificate needs its private key, and the key its certificate")
        (error,) = errors(terminal.Options, "--identifier=Ib", *options[:2], *pair(own))
        assert error.endswith(f"{own.certificate}: is not a certificate for a client")
        (error,) = errors(terminal.Options, "--identifier=Ib", *pair(files)[:1])
        assert error.endswith("--certificate: needs a mediator that is named as tls:HOST:PORT")

    def test_mediators(self) -> None:
        """Names that no certificate could prove are a mistake."""
        (error,) = errors(resolver.Options, "--mediators=east")
        assert "their certificates need --listen-tls and --client-ca" in error

    def test_changed_since(self, tmp_path: Path, own: Files) -> None:
        """Files that went bad after the options were read are why it doesn't start."""
        key = tmp_path / "key"
        key.write_bytes(Path(own.key).read_bytes())
        key.chmod(0o600)
        options = options_of(mediator.Options, LOOPBACK, *pair(Files(own.certificate, str(key))))
        key.unlink()
        store: Any = None
        with pytest.raises(CannotStart, match=f"{key}: No such file"):
            mediator.MediatorService(FakeReactor(), options, store)


def secured_client(
    reactor: FakeReactor, pki: Pki, shown: Files | None = None, *, say: bytes = b""
) -> tuple[Client, Any]:
    """A client of the second port, where TLS is spoken."""
    foreign = foreign_client(pki.ca, shown)
    return meet(reactor.tcpServers[1][1], reactor, foreign, say=say), foreign


class ServingTests:
    """The roles over TLS."""

    def test_mediator(self, pki: Pki, own: Files) -> None:
        """It serves over TLS as it does without, and leaves nothing behind (A21)."""
        reactor = FakeReactor()
        service = a_mediator(LOOPBACK, *pair(own), reactor=reactor)
        start(service)
        assert [port for port, *_ in reactor.tcpServers] == [1201, 1202]
        assert service.listening.ports == {1201, 1202}
        port: Any = reactor.tcpServers[1][1]
        port.doStart()  # as a real port does, and stops it when it closes
        _, foreign = secured_client(reactor, pki, say=b"REGISTER\nIdentifier:Ia\n\n")
        assert foreign.received == b"NOTIFY\r\nRegistration Completed.\r\n\r\n"
        silent = connect(port, reactor)  # in its handshake
        service.stopService()
        port.doStop()
        settle(reactor)
        assert silent.closed
        assert reactor.getDelayedCalls() == []

    def test_terminal(self, pki: Pki, own: Files) -> None:
        """It registers over TLS once the server is verified (D2)."""
        reactor = FakeReactor()
        options = options_of(
            terminal.Options, "--identifier=Ib", "--mediator=tls:127.0.0.1:1202", f"--ca={pki.ca}"
        )
        service = terminal.TerminalService(reactor, options, execute)
        start(service)
        (dial,) = reactor.dials
        assert (dial.host, dial.port) == ("127.0.0.1", 1202)
        line = dial.accept()
        foreign = foreign_server(own)
        foreign.talk(line)
        assert foreign.received.startswith(b"REGISTER\r\nIdentifier:Ib\r\n")
        service.stopService()

    @pytest.mark.parametrize(
        ("whose", "secret", "taken"),
        [
            ("east", "", True),
            ("west", "", False),
            ("west", "Password:correct horse\n", False),
            ("terminal", "Password:correct horse\n", False),
            ("", "Password:correct horse\n", True),
            ("", "", False),
        ],
    )
    def test_mediators(
        self, pki: Pki, own: Files, tmp_path: Path, whose: str, secret: str, taken: bool
    ) -> None:
        """A listed mediator's certificate, or without any the secret; a terminal's never (A15)."""
        path = a_secret(tmp_path)
        reactor = FakeReactor()
        options = options_of(
            resolver.Options,
            *(LOOPBACK, *pair(own), f"--client-ca={pki.ca}", "--mediators=east"),
            f"--mediator-secret={path}",
        )
        start(resolver.ResolverService(reactor, options))
        shown = pki.terminal("east") if whose == "terminal" else None
        if whose in {"east", "west"}:
            shown = pki.mediator(whose)
        _, foreign = secured_client(
            reactor, pki, shown, say=f"REGISTER\nRole:Mediator\n{secret}\n".encode()
        )
        assert (b"Registration Completed." in foreign.received) is taken
        assert (b"Permission Denied." in foreign.received) is not taken

    def test_names_end_the_trust_in_loopback(self, pki: Pki, own: Files) -> None:
        """Where mediators are named and no secret is set, being on this machine proves nothing."""
        reactor = FakeReactor()
        options = options_of(
            resolver.Options, LOOPBACK, *pair(own), f"--client-ca={pki.ca}", "--mediators=east"
        )
        start(resolver.ResolverService(reactor, options))
        _, foreign = secured_client(reactor, pki, say=b"REGISTER\nRole:Mediator\n\n")
        assert b"Permission Denied." in foreign.received

    def test_revoked_since(self, pki: Pki, own: Files) -> None:
        """A mediator whose certificate has been revoked loses its link at the reload (I2)."""
        reactor = FakeReactor()
        options = options_of(
            resolver.Options,
            *(LOOPBACK, *pair(own), f"--client-ca={pki.ca}", f"--revocation-list={pki.crl}"),
            *("--mediators=east", "--mediators=west"),
        )
        service = resolver.ResolverService(reactor, options)
        start(service)
        bad, good = pki.mediator("east"), pki.mediator("west")
        link = b"REGISTER\nRole:Mediator\n\n"
        first, _ = secured_client(reactor, pki, bad, say=link)
        second, _ = secured_client(reactor, pki, good, say=link)
        pki.revoke(bad)
        service.renewal.reload()
        assert first.closed
        assert not second.closed


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
        ("text", "made"),
        [
            ("tcp:192.0.2.1:1201", TCP4ClientEndpoint),
            ("tcp:[2001:db8::1]:1201", TCP6ClientEndpoint),
            ("tcp:signal.example.com:1201:timeout=5", HostnameEndpoint),
        ],
    )
    def test_kinds(self, text: str, made: type[object]) -> None:
        """A name may have addresses of both families; an address is what it is."""
        found = tls_settings.endpoint(FakeReactor(), parse_server(text), None)
        assert isinstance(found, made)

    @pytest.mark.parametrize(
        ("text", "bind"),
        [
            ("tcp:192.0.2.1:1201", ""),
            ("tcp:[2001:db8::1]:1201", ""),
            ("tcp:192.0.2.1:1201:bindAddress=192.0.2.9", "192.0.2.9"),
        ],
    )
    def test_a_port_of_its_own(self, text: str, bind: str) -> None:
        """It is bound to one first, so that no other connection has that port."""
        reactor = FakeReactor()
        tls_settings.endpoint(reactor, parse_server(text), None).connect(Maker())
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
