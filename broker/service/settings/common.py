"""What the roles' services have in common: settings, a trace, the store's and secrets' reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from os.path import abspath
from typing import Final

from twisted.logger import Logger

from broker.files import InvalidFile, read_private
from broker.messages.grammar import BLANKS
from broker.messages.message import Message, host_port, printable
from broker.net.hub import HubMember
from broker.service.process import CannotStart
from broker.service.settings.values import (
    FLAG,
    NETWORK,
    PATH,
    SECONDS,
    UDP,
    Kind,
    Listener,
    Server,
    Setting,
    Settings,
    choice,
)

#: Seconds that a connection has to say who it is: enough for a person who types.
TYPED_LOGIN: Final = 120
#: The same where a login is asked for, which is a program's affair.
PROVEN_LOGIN: Final = 10
LOGIN_TIMEOUT: Final = Setting(
    "login-timeout",
    SECONDS,
    TYPED_LOGIN,
    "Seconds that a connection has to say who it is.",
)


def _seconds_or_none(text: str) -> object:
    return None if text == "0" else SECONDS.parse(text)


#: The same for a role to which terminals log in.
PROVEN_LOGIN_TIMEOUT: Final = replace(
    LOGIN_TIMEOUT,
    kind=SECONDS._replace(parse=_seconds_or_none),
    default=0,
    help="Seconds that a connection has to log in; 0: as many as suit --auth, 120 with none, 10"
    " otherwise.",
)
STORE: Final = Setting(
    "store",
    choice("memory:"),
    "memory:",
    "Where what must survive is kept; memory: forgets it when the process ends.",
)


def parse_store(text: str) -> str | None:
    """Where a store is: a path for ``sqlite:PATH``, nothing for ``memory:``."""
    kind, colon, path = text.partition(":")
    if text == "memory:":
        return None
    if kind != "sqlite" or not colon or not path or "\0" in path:
        raise ValueError(f"{text!r} is not offered: only memory: or sqlite:PATH")
    return abspath(path)


#: The same for a role that has something to keep.
DURABLE_STORE: Final = replace(
    STORE,
    kind=Kind(parse_store),
    default="sqlite:broker.db",
    help="Where what must survive is kept: sqlite:PATH, a file; memory: forgets it when the process"
    " ends.",
)
AUTH: Final = Setting(
    "auth",
    choice("none"),
    "none",
    "How it is proven who somebody is; none believes whoever says so.",
)
#: The same for a role that has accounts.
PROVEN: Final = replace(
    AUTH,
    kind=choice("password", "certificate", "none"),
    default="password",
    help="How terminals prove who they are: by an account's password, or a certificate; none"
    " believes whoever says so.",
)
CLEAR_TEXT: Final = Setting(
    "allow-clear-text",
    FLAG,
    False,
    "Allow what is not encrypted, or proves nobody, beyond this machine: others can read it, or"
    " act as anybody.",
)
UDP_PORT: Final = Setting(
    "udp",
    UDP,
    "1200:127.0.0.1",
    "The port, and the interface, at which terminals register by UDP: PORT[:INTERFACE]; or none.",
)
ALLOW_ADDRESS: Final = Setting(
    "allow-address",
    NETWORK,
    [],
    "A network, such as 192.168.0.0/16, whose addresses may be registered from anywhere.",
    repeatable=True,
)
TRACE: Final = Setting(
    "trace", FLAG, False, "Log each message as it passes, a line each; secrets are masked."
)


#: More than the file of a secret ever has.
_SECRET_BYTES: Final = 4096


def secret_setting(other: str) -> Setting:
    """The setting for the file of the secret that a mediator and a resolver share."""
    return Setting(
        "mediator-secret",
        PATH,
        "",
        f"A file that holds the secret which {other} holds too, and which nobody else may be able"
        " to read.",
    )


def exposed(settings: Settings, also: str = "") -> Iterator[str]:
    """Listeners and servers beyond this machine that clear text or anybody would reach (I25).

    TLS hides what is said, and doesn't prove who says it: with ``auth`` ``none`` it is not enough.
    Where terminals log in, it is.

    :param also: a further setting that names a server, or nothing
    """
    listeners: list[Listener] = settings.values["listen"]
    secured: list[Listener] = settings.values["listen-tls"]
    if not listeners and not secured:
        yield f"{settings.where('listen')}: at least one place to listen is needed"
    if settings.values["allow-clear-text"]:
        return
    anybody = settings.values["auth"] == "none"
    for listener in listeners:
        if not listener.interface.loopback and anybody:
            yield (
                f"{settings.where('listen')}: {listener.text} can be reached from other machines,"
                " and with auth none whoever connects is believed, in clear text:"
                " listen on interface=127.0.0.1, or say --allow-clear-text"
            )
        elif not listener.interface.loopback:
            yield (
                f"{settings.where('listen')}: {listener.text} can be reached from other machines,"
                " and passwords and addresses would go there in clear text:"
                " listen on interface=127.0.0.1 and offer TLS by --listen-tls,"
                " or say --allow-clear-text"
            )
    for listener in secured:
        if not listener.interface.loopback and anybody:
            yield (
                f"{settings.where('listen-tls')}: {listener.text} can be reached from other"
                " machines, and with auth none whoever connects is believed, encrypted though it"
                " is: listen on interface=127.0.0.1, or say --allow-clear-text"
            )
    server: Server | None = settings.values.get(also)
    if server is not None and not server.loopback and not server.tls:
        yield (
            f"{settings.where(also)}: {server.text} is another machine, and all would go there in"
            " clear text: say --allow-clear-text if that is meant"
        )


def read_secret(path: str | None) -> str | None:
    """The secret that a file holds: its one line, without blanks at the ends.

    :raises CannotStart: it can't be read, others can read it, or it holds none
    """
    if path is None:
        return None
    try:
        secret = read_private(path, _SECRET_BYTES).decode("utf-8").rstrip("\r\n").strip(BLANKS)
    except OSError as error:
        raise CannotStart(f"{path}: {error.strerror}") from None
    except InvalidFile as error:
        raise CannotStart(str(error)) from None
    except UnicodeDecodeError:
        secret = ""
    if not secret.isprintable() or not 1 <= len(secret) <= 512:
        raise CannotStart(f"{path}: holds no secret: one line of 1 to 512 characters")
    return secret


def make_trace(
    write: Callable[[str], object], name: Callable[[HubMember], str]
) -> Callable[[HubMember, str, Message], None]:
    """A trace that writes a line for each message: ``Ib > QUERY / STATUS`` (I18, I19).

    :param write: given each line
    :param name: what a peer is called
    """

    def trace(stream: HubMember, way: str, message: Message) -> None:
        write(f"{name(stream)} {way} {' / '.join(message.masked())}")

    return trace


def log_trace(
    name: Callable[[HubMember], str],
) -> Callable[[HubMember, str, Message], None]:
    """A trace to the log."""
    log = Logger(namespace="broker.trace")
    return make_trace(lambda line: log.info("{line}", line=line), name)


def name_inside(stream: HubMember) -> str:
    """What a server calls a peer: the identifier it is bound to, and its address before that."""
    identifier = getattr(getattr(stream, "receiver", None), "identifier", None)
    return printable(identifier) if isinstance(identifier, str) else address_of(stream)


def address_of(stream: HubMember) -> str:
    """Where a peer is."""
    address = stream.transport.getPeer() if stream.transport is not None else None
    host, port = getattr(address, "host", None), getattr(address, "port", None)
    if host is None or port is None:
        return "a peer"
    return host_port(host, port)
