"""A role in memory: its options as ``twistd`` parses them, its service, and the network around."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from twisted.internet.defer import execute
from twisted.internet.error import CannotListenError
from twisted.python import usage

from broker.service import mediator, resolver, terminal
from broker.service.settings.options import RoleOptions
from broker.store.memory import MemoryStore
from tests.support.certificates import Files
from tests.support.clock import advance, result_of, settle
from tests.support.processes import environment
from tests.support.reactor import FakeReactor
from tests.support.server import cheap_passwords
from tests.support.transport import Client, connect

MEDIATOR: Final = mediator.Options
RESOLVER: Final = resolver.Options
TERMINAL: Final = terminal.Options
ROLES: Final[tuple[type[RoleOptions], ...]] = (MEDIATOR, RESOLVER, TERMINAL)
LOOPBACK_TLS: Final = "--listen-tls=tcp:1202:interface=127.0.0.1"
REGISTERED: Final = "NOTIFY\nRegistration Completed.\n\n"
#: Modes of a file that others can read or change.
EXPOSED: Final = (0o640, 0o604, 0o620, 0o602, 0o660)


def python(
    *arguments: str, cwd: Path | None = None, status: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh interpreter, and see that it ends with a status."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def parse(
    role: type[RoleOptions], *arguments: str, parent: Mapping[str, Any] | None = None
) -> RoleOptions:
    """Parse a role's arguments as twistd does; ``parent`` are twistd's own options."""
    options = role()
    if parent is not None:
        options.parent = usage.Options()
        options.parent.update({"nodaemon": True, "logfile": None, **parent})
    needed = ["--identifier=Ib"] if role is TERMINAL else []
    options.parseOptions([*needed, *arguments])
    return options


def options_of(role: type[RoleOptions], *arguments: str) -> Any:
    """The options of a role in memory, which opens no port for datagrams unless told."""
    said = any(argument.startswith(("--udp", "--resolver")) for argument in arguments)
    return parse(role, *([] if role is TERMINAL or said else ["--udp=none"]), *arguments)


def errors(role: type[RoleOptions], *arguments: str) -> list[str]:
    """The errors that keep a role from starting."""
    with pytest.raises(SystemExit) as given_up:
        role().parseOptions(list(arguments))
    return str(given_up.value.code).split("\n")


def a_file(path: Path, content: bytes = b"correct horse\n", mode: int = 0o600) -> Path:
    """A file that holds a password, a secret or a key."""
    path.write_bytes(content)
    path.chmod(mode)
    return path


def pair(files: Files) -> list[str]:
    """The options for a certificate and its key."""
    return [f"--certificate={files.certificate}", f"--private-key={files.key}"]


class RefusingReactor(FakeReactor):
    """A reactor one of whose ports is in use."""

    def __init__(self, refused: int) -> None:
        super().__init__()
        self.refused = refused

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        if port == self.refused:
            raise CannotListenError(interface, port, OSError(98, "Address already in use"))
        return super().listenTCP(port, factory, backlog, interface)  # type: ignore[no-untyped-call]


class Scene:
    """A role's service in memory.

    :ivar reactor: its clock and its network
    :ivar service: the service
    """

    def __init__(
        self,
        role: type[RoleOptions],
        *arguments: str,
        reactor: FakeReactor | None = None,
        store: Any = None,
        started: bool = True,
    ) -> None:
        self.reactor = reactor or FakeReactor()
        options = options_of(role, *arguments)
        self.service: Any
        if role is TERMINAL:
            self.service = terminal.TerminalService(self.reactor, options, execute)
        elif role is RESOLVER:
            self.service = resolver.ResolverService(self.reactor, options)
        else:
            store = store or MemoryStore(lambda count: b"r" * count)
            passwords = cheap_passwords()
            self.service = mediator.MediatorService(
                self.reactor, options, store, passwords=passwords
            )
        if started:
            self.start()

    def start(self) -> None:
        """Start it as twistd does."""
        self.service.privilegedStartService()
        self.service.startService()

    def stops(self, *clients: Client) -> None:
        """Stop it; its connections are closed, and no timer is left."""
        self.service.stopService()
        settle(self.reactor)
        assert all(client.closed for client in clients)
        assert self.reactor.getDelayedCalls() == []

    @property
    def ports(self) -> list[int]:
        """The ports on which it listens."""
        return [port for port, *_ in self.reactor.tcpServers]

    def client(self, **addresses: Any) -> Client:
        """A connection to its first port."""
        port, factory, _, interface = self.reactor.tcpServers[0]
        host = interface or "127.0.0.1"
        return connect(factory, self.reactor, port=port, host=host, **addresses)

    def answer(self, text: str, **addresses: Any) -> str:
        """What a new connection is answered."""
        client = self.client(**addresses)
        client.type(text)
        return client.text()

    def line(self, **addresses: Any) -> Client:
        """The far end of its only outgoing connection."""
        (dial,) = self.reactor.dials
        return dial.accept(**addresses)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        advance(self.reactor, seconds)

    def account(self) -> None:
        """Make an account for Ia at a mediator."""
        result_of(self.service.mediator.accounts.add("Ia", "secret"))


def a_mediator(*arguments: str, **more: Any) -> Scene:
    """A mediator that believes who connects."""
    return Scene(MEDIATOR, "--auth=none", *arguments, **more)
