"""TLS as a role has it: the settings, the sides made of them, and their files read again."""

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
from broker.service.process import CannotStart
from broker.service.settings.values import LISTENER, PATH, PIN, Server, Setting, Settings

#: Seconds between two looks at how long certificates are still good.
DAY: Final = 86400.0

CERTIFICATE: Final = Setting(
    "certificate", PATH, "", "The certificate of this server, in PEM form, for --listen-tls."
)
PRIVATE_KEY: Final = Setting(
    "private-key", PATH, "", "Its private key, which nobody else may be able to read."
)
CLIENT_CA: Final = Setting(
    "client-ca", PATH, "", "The authority of clients' certificates; without, none is asked for."
)
REVOCATIONS: Final = Setting(
    "revocation-list", PATH, "", "What that authority has revoked; needed once it has."
)
CA: Final = Setting(
    "ca",
    PATH,
    "",
    "The authority that has issued the certificate of a tls: mediator; without, those that the"
    " system trusts.",
)
PINNED: Final = Setting(
    "pin", PIN, "", "SHA-256 of the public key of a tls: mediator: no other key will do."
)
OWN_CERTIFICATE: Final = Setting(
    "certificate",
    PATH,
    "",
    "The certificate that proves the terminal to a tls: mediator; no password is looked for then.",
)
OWN_KEY: Final = Setting(
    "private-key", PATH, "", "Its private key, which nobody else may be able to read."
)
CA_REVOCATIONS: Final = Setting(
    "revocation-list", PATH, "", "What the authority named by --ca has revoked."
)
RESOLVER_CA: Final = Setting(
    "resolver-ca",
    PATH,
    "",
    "The authority that has issued the certificate of a tls: resolver; without, those that the"
    " system trusts.",
)
RESOLVER_PIN: Final = Setting(
    "resolver-pin", PIN, "", "SHA-256 of the public key of a tls: resolver: no other key will do."
)
RESOLVER_CERTIFICATE: Final = Setting(
    "resolver-certificate",
    PATH,
    "",
    "The certificate that proves this mediator to a tls: resolver.",
)
RESOLVER_KEY: Final = Setting(
    "resolver-key", PATH, "", "Its private key, which nobody else may be able to read."
)

#: The settings of a server's side, after that for where it listens.
SERVER_SIDE: Final = (CERTIFICATE, PRIVATE_KEY, CLIENT_CA, REVOCATIONS)
#: Those of a terminal towards its mediator.
TO_MEDIATOR: Final = (CA, PINNED, CA_REVOCATIONS, OWN_CERTIFICATE, OWN_KEY)
#: Those of a mediator towards its resolver.
TO_RESOLVER: Final = (RESOLVER_CA, RESOLVER_PIN, RESOLVER_CERTIFICATE, RESOLVER_KEY)


def listen_setting(port: int) -> Setting:
    """The setting for where a server speaks TLS."""
    return Setting(
        "listen-tls",
        LISTENER,
        [],
        f"Where the same is offered over TLS: tcp:PORT[:interface=ADDRESS], such as tcp:{port}.",
        repeatable=True,
    )


def server_side(values: Any) -> ServerTls | None:
    """The server's side, where a place to speak TLS is set.

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


def to_mediator(values: Any) -> ClientTls | None:
    """A terminal's side, where its mediator is called over TLS; raises as ``server_side``."""
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


def to_resolver(values: Any) -> ClientTls | None:
    """A mediator's side, where its resolver is called over TLS; raises as ``server_side``."""
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


def made(make: Callable[[Any], T], values: Any) -> T:
    """A side, or a reason not to start: a file has changed since the settings were looked at."""
    try:
        return make(values)
    except InvalidFile as error:
        raise CannotStart(str(error)) from None


def in_clear(server: Server, *, allowed: bool) -> str | None:
    """Why a login may not go to a server; ``None`` where it may (I25).

    :param allowed: clear text is, beyond this machine
    """
    if server.tls or server.loopback or allowed:
        return None
    return (
        f"{server.text} is another machine, and the login and all that is told would go there in"
        " clear text: name it as tls:HOST:PORT, or say --allow-clear-text"
    )


def endpoint(reactor: Any, server: Server, tls: ClientTls | None) -> IStreamClientEndpoint:
    """How a server is connected to.

    From a port of its own, bound first: one that a connection is given otherwise may be another's
    too, and then can't be shared again (``MediatorClient.share_port``).
    """
    bind = (server.bind, 0)
    made: Callable[..., IStreamClientEndpoint] = endpoint_at
    try:
        ip_address(server.host)
    except ValueError:
        made = HostnameEndpoint  # which tries all addresses of a name, of both families
    plain = made(reactor, server.host, server.port, server.timeout, bind)
    return plain if tls is None else TlsEndpoint(tls, plain, reactor)


# What is wrong with the settings.


def server_problems(settings: Settings) -> Iterator[str]:
    """What is wrong with the settings of a server's side, a line each."""
    values = settings.values
    if not values["listen-tls"]:
        yield from _idle(settings, SERVER_SIDE, "goes with --listen-tls, which is not set")
        return
    missing = [one.name for one in (CERTIFICATE, PRIVATE_KEY) if values[one.name] is None]
    if missing:
        needed = " and ".join(f"--{name}" for name in missing)
        yield f"{settings.where('listen-tls')}: TLS needs {needed}"
    elif values["revocation-list"] is not None and values["client-ca"] is None:
        where = settings.where("revocation-list")
        yield f"{where}: whose it is can't be checked without --client-ca"
    else:
        yield from _tried(server_side, settings, "listen-tls")


def mediator_problems(settings: Settings) -> Iterator[str]:
    """What is wrong with those of a terminal towards its mediator."""
    yield from _client_problems(settings, "mediator", TO_MEDIATOR, to_mediator)


def resolver_problems(settings: Settings) -> Iterator[str]:
    """What is wrong with those of a mediator towards its resolver."""
    yield from _client_problems(settings, "resolver", TO_RESOLVER, to_resolver)


def _client_problems(
    settings: Settings,
    name: str,
    own: Sequence[Setting],
    make: Callable[[Any], ClientTls | None],
) -> Iterator[str]:
    server: Server | None = settings.values[name]
    if server is None or not server.tls:
        yield from _idle(settings, own, f"goes with a {name} that is called as tls:HOST:PORT")
    else:
        yield from _tried(make, settings, name)


def _idle(settings: Settings, own: Sequence[Setting], why: str) -> Iterator[str]:
    """Settings that would do nothing, though somebody may rely on them (I25)."""
    for setting in own:
        if settings.values[setting.name] is not None:
            yield f"{settings.where(setting.name)}: {why}"


def _tried(make: Callable[[Any], object], settings: Settings, name: str) -> Iterator[str]:
    try:
        make(settings.values)
    except InvalidFile as error:
        yield f"{settings.where(name)}: {error}"


# While the role runs.


class Renewal:
    """Reads the files of a role's sides again when it is told to, and warns of those that end.

    :ivar renewed: called once files were read again
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, *sides: ServerTls | ClientTls | None) -> None:
        self.renewed: Callable[[], object] = lambda: None
        self._sides = [side for side in sides if side is not None]
        self._looping = LoopingCall(self.warn)
        self._looping.clock = clock

    def start(self) -> None:
        """Warn now, and each day."""
        if self._sides:
            self._looping.start(DAY)

    def stop(self) -> None:
        """Leave no timer behind."""
        if self._looping.running:
            self._looping.stop()

    def reload(self) -> None:
        """Read all files again, for the connections made from now on; those that stand go on.

        Where one of them is not good, that side stays as it was (I3).
        """
        for side in self._sides:
            why = _reloaded(side)
            if why is None:
                self.log.info("The certificates were read again")
            else:
                told = "The certificates were not read again, the old stay in use: {why}"
                self.log.error(told, why=why)
        self.renewed()
        self.warn()

    def warn(self) -> None:
        """Log what ends within 14 days, or has ended."""
        for side in self._sides:
            for line in side.warnings():
                self.log.warn("Certificates: {line}", line=line)

    def on_hangup(self, reactor: Any) -> None:
        """Have SIGHUP read the files again; without files it ends the process, as ever."""
        if not self._sides:
            return

        def handle(number: int, frame: FrameType | None) -> None:
            reactor.callFromThread(self.reload)

        signal.signal(signal.SIGHUP, handle)


def _reloaded(side: ServerTls | ClientTls) -> str | None:
    """Read a side's files again; why that can't be, if it can't."""
    try:
        side.reload()
    except InvalidFile as error:
        return str(error)
    return None
