"""TLS of a role: its settings, what they configure, and the reloading of their files."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from types import FrameType
from typing import Any, Final, TypeVar

from twisted.internet.endpoints import (
    HostnameEndpoint,
)
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from broker.files import InvalidFile
from broker.net.endpoints import endpoint_at
from broker.net.tls.contexts import ClientTls, ServerTls
from broker.net.tls.transport import TlsEndpoint
from broker.service.errors import CannotStart
from broker.service.settings.setting import Setting, Settings
from broker.service.settings.values import LISTENER, PATH, PIN, Server

#: Seconds between two checks of how long certificates are still valid.
DAY: Final = 86400.0

CERTIFICATE: Final = Setting(
    "certificate", PATH, "", "Certificate of this server for --listen-tls, in PEM format."
)
PRIVATE_KEY: Final = Setting(
    "private-key", PATH, "", "Private key of --certificate, which only its owner can read."
)
CLIENT_CA: Final = Setting(
    "client-ca", PATH, "", "CA of client certificates. Default: clients are not asked for one."
)
REVOCATIONS: Final = Setting(
    "revocation-list",
    PATH,
    "",
    "Revocation list of --client-ca. Needed once that CA has revoked a certificate.",
)
CA: Final = Setting(
    "ca",
    PATH,
    "",
    "CA that issued the certificate of a tls: mediator. Default: the system's CAs.",
)
PINNED: Final = Setting(
    "pin", PIN, "", "SHA-256 of the public key of a tls: mediator; no other key is accepted."
)
OWN_CERTIFICATE: Final = Setting(
    "certificate",
    PATH,
    "",
    "Certificate with which the terminal logs in to a tls: mediator, instead of a password.",
)
OWN_KEY: Final = Setting(
    "private-key", PATH, "", "Private key of --certificate, which only its owner can read."
)
CA_REVOCATIONS: Final = Setting("revocation-list", PATH, "", "Revocation list of --ca.")
RESOLVER_CA: Final = Setting(
    "resolver-ca",
    PATH,
    "",
    "CA that issued the certificate of a tls: resolver. Default: the system's CAs.",
)
RESOLVER_PIN: Final = Setting(
    "resolver-pin",
    PIN,
    "",
    "SHA-256 of the public key of a tls: resolver; no other key is accepted.",
)
RESOLVER_CERTIFICATE: Final = Setting(
    "resolver-certificate",
    PATH,
    "",
    "Certificate that proves this mediator to a tls: resolver.",
)
RESOLVER_KEY: Final = Setting(
    "resolver-key",
    PATH,
    "",
    "Private key of --resolver-certificate, which only its owner can read.",
)

#: The settings of a server, apart from where it listens.
SERVER_SETTINGS: Final = (CERTIFICATE, PRIVATE_KEY, CLIENT_CA, REVOCATIONS)
#: The settings of a terminal for the connection to its mediator.
MEDIATOR_SETTINGS: Final = (CA, PINNED, CA_REVOCATIONS, OWN_CERTIFICATE, OWN_KEY)
#: The settings of a mediator for the connection to its resolver.
RESOLVER_SETTINGS: Final = (RESOLVER_CA, RESOLVER_PIN, RESOLVER_CERTIFICATE, RESOLVER_KEY)


def listen_setting(port: int) -> Setting:
    """The setting for where a server listens for TLS."""
    return Setting(
        "listen-tls",
        LISTENER,
        [],
        f"Where to listen for TLS: tcp:PORT[:interface=ADDRESS], such as tcp:{port}.",
        repeatable=True,
    )


def server_tls(values: Any) -> ServerTls | None:
    """TLS of a server, if it listens for TLS.

    :param values: settings by name
    :raises Unusable: a file is missing, or not good
    """
    if not values["listen-tls"]:
        return None
    return ServerTls(
        values["certificate"],
        values["private-key"],
        client_ca=values["client-ca"],
        crl=values["revocation-list"],
    )


def mediator_tls(values: Any) -> ClientTls | None:
    """TLS of a terminal, if its mediator uses TLS; raises like ``server_tls``."""
    server: Server = values["mediator"]
    if not server.tls:
        return None
    return ClientTls(
        values["ca"],
        server.host,
        certificate=values["certificate"],
        key=values["private-key"],
        pin=values["pin"],
        crl=values["revocation-list"],
    )


def resolver_tls(values: Any) -> ClientTls | None:
    """TLS of a mediator, if its resolver uses TLS; raises like ``server_tls``."""
    server: Server | None = values["resolver"]
    if server is None or not server.tls:
        return None
    return ClientTls(
        values["resolver-ca"],
        server.host,
        certificate=values["resolver-certificate"],
        key=values["resolver-key"],
        pin=values["resolver-pin"],
    )


T = TypeVar("T")


def at_start(make: Callable[[Any], T], values: Any) -> T:
    """Make one of these as a role starts.

    The files were valid when the settings were checked, and may have changed since then.

    :raises CannotStart: one is missing or invalid now
    """
    try:
        return make(values)
    except InvalidFile as error:
        raise CannotStart(str(error)) from None


def clear_text_problem(server: Server, *, allowed: bool) -> str | None:
    """Why a login may not be sent to a server; ``None`` if it may (I25).

    :param allowed: clear text to other machines is allowed
    """
    if server.tls or server.loopback or allowed:
        return None
    return (
        f"{server.text} is another machine, and the login and all messages would go there in clear"
        " text: name it as tls:HOST:PORT, or use --allow-clear-text"
    )


def endpoint(reactor: Any, server: Server, tls: ClientTls | None) -> IStreamClientEndpoint:
    """The endpoint of a server.

    It binds a port of its own first. A port that connect() picks may also belong to another
    connection, and then can't be shared for hole punching (``MediatorClient.share_port``).
    """
    bind = (server.bind, 0)
    make: Callable[..., IStreamClientEndpoint] = endpoint_at
    try:
        ip_address(server.host)
    except ValueError:
        make = HostnameEndpoint  # tries all addresses of a name, IPv4 and IPv6
    plain = make(reactor, server.host, server.port, server.timeout, bind)
    return plain if tls is None else TlsEndpoint(tls, plain, reactor)


# Checks of the settings.


def server_problems(settings: Settings) -> Iterator[str]:
    """What is wrong with the TLS settings of a server, one line for each."""
    values = settings.values
    if not values["listen-tls"]:
        yield from _unused(settings, SERVER_SETTINGS, "needs --listen-tls")
        return
    missing = [name for name in ("certificate", "private-key") if values[name] is None]
    if missing:
        needed = " and ".join(f"--{name}" for name in missing)
        yield f"{settings.where('listen-tls')}: TLS needs {needed}"
    elif values["revocation-list"] is not None and values["client-ca"] is None:
        where = settings.where("revocation-list")
        yield f"{where}: can't be checked without --client-ca"
    else:
        yield from _attempt(server_tls, settings, "listen-tls")


def mediator_problems(settings: Settings) -> Iterator[str]:
    """What is wrong with the TLS settings of a terminal."""
    yield from _client_problems(settings, "mediator", MEDIATOR_SETTINGS, mediator_tls)


def resolver_problems(settings: Settings) -> Iterator[str]:
    """What is wrong with the TLS settings of a mediator for its resolver."""
    yield from _client_problems(settings, "resolver", RESOLVER_SETTINGS, resolver_tls)


def _client_problems(
    settings: Settings,
    name: str,
    own: Sequence[Setting],
    make: Callable[[Any], ClientTls | None],
) -> Iterator[str]:
    server: Server | None = settings.values[name]
    if server is None or not server.tls:
        yield from _unused(settings, own, f"needs a {name} that is named as tls:HOST:PORT")
    else:
        yield from _attempt(make, settings, name)


def _unused(settings: Settings, own: Sequence[Setting], why: str) -> Iterator[str]:
    """Settings that would have no effect: they are errors, since users may rely on them (I25)."""
    for setting in own:
        if settings.values[setting.name] is not None:
            yield f"{settings.where(setting.name)}: {why}"


def _attempt(make: Callable[[Any], object], settings: Settings, name: str) -> Iterator[str]:
    try:
        make(settings.values)
    except InvalidFile as error:
        yield f"{settings.where(name)}: {error}"


# While the role runs.


RELOADED: Final = "The certificates were read again"
NOT_RELOADED: Final = "The certificates could not be reloaded; the old ones stay in use: {why}"


class Renewal:
    """Reloads certificates on SIGHUP, and warns of those that expire.

    :ivar renewed: called after files were read again
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, *sides: ServerTls | ClientTls | None) -> None:
        self.renewed: Callable[[], object] = lambda: None
        self._sides = [side for side in sides if side is not None]
        self._looping = LoopingCall(self.warn)
        self._looping.clock = clock

    def start(self) -> None:
        """Warn now, and every day."""
        if self._sides:
            self._looping.start(DAY)

    def stop(self) -> None:
        """Stop the timer."""
        if self._looping.running:
            self._looping.stop()

    def reload(self) -> None:
        """Read all files again, for new connections; existing ones continue.

        If one of the files is invalid, everything that belongs to it stays in use (I3).
        """
        for side in self._sides:
            why = _reloaded(side)
            if why is None:
                self.log.info(RELOADED)
            else:
                self.log.error(NOT_RELOADED, why=why)
        self.renewed()
        self.warn()

    def warn(self) -> None:
        """Log which certificates expire within 14 days, or have expired."""
        for side in self._sides:
            for line in side.warnings():
                self.log.warn("Certificates: {line}", line=line)

    def on_hangup(self, reactor: Any) -> None:
        """Reload on SIGHUP. Without any files, SIGHUP ends the process as usual."""
        if not self._sides:
            return

        def handle(number: int, frame: FrameType | None) -> None:
            reactor.callFromThread(self.reload)

        signal.signal(signal.SIGHUP, handle)


def _reloaded(side: ServerTls | ClientTls) -> str | None:
    """Read files again. Return why that failed, if it did."""
    try:
        side.reload()
    except InvalidFile as error:
        return str(error)
    return None
