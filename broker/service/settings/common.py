"""What the roles share: common settings, the trace, and the reading of secrets."""

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
from broker.service.errors import CannotStart
from broker.service.settings.setting import Setting, Settings
from broker.service.settings.values import (
    FLAG,
    NETWORK,
    PATH,
    SECONDS,
    UDP,
    Listener,
    Server,
    ValueType,
    choice,
)

#: Seconds in which a connection must identify itself: enough for a person who types.
TYPED_LOGIN: Final = 120
#: Seconds in which a connection must log in, which programs do.
PROVEN_LOGIN: Final = 10
LOGIN_TIMEOUT: Final = Setting(
    "login-timeout",
    SECONDS,
    TYPED_LOGIN,
    "Seconds in which a connection must identify itself.",
)


def _seconds_or_none(text: str) -> object:
    return None if text == "0" else SECONDS.parse(text)


#: The setting of a role that terminals log in to.
PROVEN_LOGIN_TIMEOUT: Final = replace(
    LOGIN_TIMEOUT,
    value_type=SECONDS._replace(parse=_seconds_or_none),
    default=0,
    help="Seconds in which a connection must log in. 0: 120 with --auth none, otherwise 10.",
)
STORE: Final = Setting(
    "store",
    choice("memory:"),
    "memory:",
    "Where data is kept; memory: loses it when the process ends.",
)


def parse_store(text: str) -> str | None:
    """Where a store is: a path for ``sqlite:PATH``, ``None`` for ``memory:``."""
    kind, colon, path = text.partition(":")
    if text == "memory:":
        return None
    if kind != "sqlite" or not colon or not path or "\0" in path:
        raise ValueError(f"{text!r} is not offered: only memory: or sqlite:PATH")
    return abspath(path)


#: The setting of a role that keeps data.
DURABLE_STORE: Final = replace(
    STORE,
    value_type=ValueType(parse_store),
    default="sqlite:broker.db",
    help="Where permits, accounts and disclosures are kept: sqlite:PATH, a file; memory: loses them"
    " when the process ends.",
)
AUTH: Final = Setting(
    "auth",
    choice("none"),
    "none",
    "How peers prove their identity. none: any identifier is believed.",
)
#: The setting of a role that has accounts.
PROVEN: Final = replace(
    AUTH,
    value_type=choice("password", "certificate", "none"),
    default="password",
    help="How terminals prove their identity: by the password of an account, or a certificate."
    " none: any identifier is believed.",
)
CLEAR_TEXT: Final = Setting(
    "allow-clear-text",
    FLAG,
    False,
    "Allow connections with other machines that are not encrypted, or where identities are not"
    " proven: others can read them, or act as any terminal.",
)
UDP_PORT: Final = Setting(
    "udp",
    UDP,
    "1200:127.0.0.1",
    "Where terminals register by UDP: PORT[:INTERFACE], or none.",
)
ALLOW_ADDRESS: Final = Setting(
    "allow-address",
    NETWORK,
    [],
    "Network whose addresses may be registered from anywhere, such as 192.168.0.0/16.",
    repeatable=True,
)
TRACE: Final = Setting("trace", FLAG, False, "Log each message in one line, with secrets masked.")


#: More bytes than the file of a secret has.
_SECRET_BYTES: Final = 4096


def secret_setting(other: str) -> Setting:
    """The setting for the file of the secret that a mediator and a resolver share."""
    return Setting(
        "mediator-secret",
        PATH,
        "",
        f"File with the secret shared with {other}, which only its owner can read.",
    )


def exposed(settings: Settings, also: str = "") -> Iterator[str]:
    """Connections with other machines that would be in clear text, or believe anyone (I25).

    TLS hides messages, but does not prove who sends them: it is enough if terminals log in, and not
    with ``auth`` ``none``.

    :param also: a setting that names a server to connect to, if there is one
    """
    listeners: list[Listener] = settings.values["listen"]
    tls_listeners: list[Listener] = settings.values["listen-tls"]
    if not listeners and not tls_listeners:
        yield f"{settings.where('listen')}: at least one place to listen is needed"
    if settings.values["allow-clear-text"]:
        return
    anybody = settings.values["auth"] == "none"
    for name, found, why in (
        ("listen", listeners, _CLEAR_AND_BELIEVED if anybody else _CLEAR),
        ("listen-tls", tls_listeners, _BELIEVED if anybody else None),
    ):
        for listener in found:
            if why is not None and not listener.interface.loopback:
                yield f"{settings.where(name)}: {listener.text} {_REACHABLE} {why}"
    server: Server | None = settings.values.get(also)
    if server is not None and not server.loopback and not server.tls:
        yield (
            f"{settings.where(also)}: {server.text} is another machine, and all messages would go"
            " there in clear text: use --allow-clear-text if that is intended"
        )


_REACHABLE: Final = "can be reached from other machines,"
_CLEAR_AND_BELIEVED: Final = (
    "and with auth none any identifier is believed, in clear text: listen on"
    " interface=127.0.0.1, or use --allow-clear-text"
)
_CLEAR: Final = (
    "and passwords and addresses would go there in clear text: listen on interface=127.0.0.1 and"
    " offer TLS by --listen-tls, or use --allow-clear-text"
)
_BELIEVED: Final = (
    "and with auth none any identifier is believed, even over TLS: listen on interface=127.0.0.1,"
    " or use --allow-clear-text"
)


def read_secret(path: str | None) -> str | None:
    """The secret in a file: its only line, without blanks at the ends.

    :raises CannotStart: it can't be read, others can read it, or it holds no secret
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

    :param write: writes a line
    :param name: gives the name of a peer
    """

    def trace(connection: HubMember, direction: str, message: Message) -> None:
        write(f"{name(connection)} {direction} {' / '.join(message.masked())}")

    return trace


def log_trace(
    name: Callable[[HubMember], str],
) -> Callable[[HubMember, str, Message], None]:
    """A trace to the log."""
    log = Logger(namespace="broker.trace")
    return make_trace(lambda line: log.info("{line}", line=line), name)


def name_inside(connection: HubMember) -> str:
    """What a server calls a peer: its identifier, or its address until it has identified itself."""
    identifier = getattr(getattr(connection, "receiver", None), "identifier", None)
    return printable(identifier) if isinstance(identifier, str) else address_of(connection)


def address_of(connection: HubMember) -> str:
    """The address and port of a peer."""
    address = connection.transport.getPeer() if connection.transport is not None else None
    host, port = getattr(address, "host", None), getattr(address, "port", None)
    if host is None or port is None:
        return "a peer"
    return host_port(host, port)
