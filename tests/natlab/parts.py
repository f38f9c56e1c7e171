"""A mediator and terminals as processes in a laboratory of routers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.integration.site import account, password_file
from tests.natlab.lab import Lab
from tests.support.certificates import Pki
from tests.support.processes import BROKER, PATIENCE, TWISTD, Running

#: What a terminal that is quiet between calls is started with.
QUIET = ("--no-hold", "--linger=0.5")
CLOSED = "Idle: closing the connection"
ASKED = "Woken: connecting to the mediator"
#: What a call brings.
SENT = bytes(range(256)) * 16
SEEN = r"Seen from outside at (\S+) port (\d+)"


class Net:
    """A mediator on the laboratory's Internet, and terminals that have accounts there.

    :ivar mediator: the mediator's process
    """

    def __init__(
        self,
        lab: Lab,
        *,
        options: Sequence[str] = (),
        interval: int = 1,
        resolver_apart: bool = False,
        at: str = "server",
    ) -> None:
        """
        :param options: more of the mediator's
        :param interval: seconds between keepalives that the mediator suggests
        :param at: where the mediator is
        """
        self.lab = lab
        self.pki = Pki(lab.folder)
        account(lab.folder, "Ia", "Ib", "Ic")
        self.secret = password_file(lab.folder)
        for name, password in (("Ib.call", "open sesame"), ("guess", "open barley")):
            (lab.folder / name).write_text(f"{password}\n")
            (lab.folder / name).chmod(0o600)
        self._at = at
        self._own = self.pki.server(lab.address(at))
        udp = f"--udp=1200:{lab.address(at)}"
        where = [udp]
        if resolver_apart:
            self.resolver = lab.start(at, *TWISTD, "-n", "broker-resolver", udp)
            self.resolver.wait_for("Listening for datagrams on")
            where = ["--resolver=tcp:127.0.0.1:1200"]
        self._options = [f"--udp-interval={interval}", *where, *options]
        self.start_mediator()

    def start_mediator(self) -> None:
        """Start the mediator, or another one after it."""
        self.mediator = self.lab.start(
            self._at,
            *(*TWISTD, "-n", "broker", "--trace", "--status-timeout=20"),
            f"--listen-tls=tcp:1202:interface={self.lab.address(self._at)}",
            f"--certificate={self._own.certificate}",
            f"--private-key={self._own.key}",
            *self._options,
        )
        apart = any(option.startswith("--resolver=") for option in self._options)
        self.mediator.wait_for("Listening for TLS" if apart else "Listening for datagrams")

    def begin(
        self, place: str, identifier: str = "Ib", *arguments: str, port: int = 1203
    ) -> Running:
        """Start a terminal that takes calls."""
        (self.lab.folder / identifier).mkdir(exist_ok=True)
        return self.lab.start(
            place,
            *(*TWISTD, "-n", "broker-terminal", "--accept=Ia"),
            f"--identifier={identifier}",
            f"--receive={identifier}",
            f"--listen=tcp:{port}",
            *self.to_mediator(),
            *arguments,
        )

    def terminal(
        self, place: str, identifier: str = "Ib", *arguments: str, port: int = 1203
    ) -> Running:
        """Start one that registers by UDP, too; wait until it is registered and seen."""
        terminal = self.begin(place, identifier, "--udp=auto", *arguments, port=port)
        terminal.wait_for("is registered$")
        terminal.wait_for(SEEN)
        return terminal

    def quiet(self, router: str, place: str, identifier: str = "Ib", port: int = 1203) -> Running:
        """The same for one that closes its line, with a port opened to it in its router."""
        self.lab.open_port(router, "tcp", port, place)
        terminal = self.terminal(place, identifier, *QUIET, port=port)
        terminal.wait_for(CLOSED)
        return terminal

    def begin_call(
        self, place: str, callee: str = "Ib", *arguments: str, caller: str = "Ia"
    ) -> Running:
        """Somebody calls from a place, to send something."""
        sent = self.lab.folder / "sent"
        sent.write_bytes(SENT)
        self._before = self.received(callee)
        return self.lab.start(
            place,
            *(*BROKER, "call", f"--as={caller}", callee, f"--send={sent}"),
            *(*self.to_mediator(), *arguments),
        )

    def arrives(self, call: Running, callee: str = "Ib") -> None:
        """A call ends well: what it sends has arrived."""
        assert call.wait() == 0, call.said
        (fresh,) = self.received(callee) - self._before
        assert fresh.read_bytes() == SENT

    def call(self, callee: str = "Ib", place: str = "outside", *, caller: str = "Ia") -> None:
        """Somebody calls from a place, and what is sent arrives."""
        self.arrives(self.begin_call(place, callee, caller=caller), callee)

    def callee(self, place: str, *arguments: str) -> Running:
        """Start Ib, which is reached by its call password; wait until it is registered."""
        return self.terminal(
            place, "Ib", "--policy=password", "--call-password-file=Ib.call", *arguments
        )

    def ask(self, place: str, *arguments: str) -> Running:
        """Ia asks Ib to come for a file."""
        return self.begin_call(
            place, "Ib", "--connect-back", "--call-password-file=Ib.call", *arguments
        )

    def call_back(self, place: str, *arguments: str) -> None:
        """The same; the file arrives."""
        self.arrives(self.ask(place, *arguments))

    def waits_at(self) -> tuple[str, int]:
        """Where the last caller was said to wait."""
        (line,) = [line for line in self.mediator.out if "> REQUEST / Caller ID:Ia" in line][-1:]
        found = re.search(r"Address:(\S+) / Port:(\d+)", line)
        assert found is not None
        return found[1], int(found[2])

    def received(self, callee: str) -> set[Path]:
        """The files that a callee has."""
        return {path for path in (self.lab.folder / callee).glob("*") if path.is_file()}

    def told(self) -> str:
        """The address of its callee that the last caller was told."""
        lines = [line for line in self.mediator.out if "/ Callee Address:" in line]
        found = re.search(r"Callee Address:(\S+)", lines[-1])
        assert found is not None
        return found[1]

    def to_mediator(self) -> list[str]:
        """What a terminal is told of the mediator, and what it logs in with."""
        return [
            f"--mediator=tls:{self.lab.address(self._at)}:1202",
            f"--ca={self.pki.ca}",
            self.secret,
        ]


def until(true: Callable[[], object]) -> None:
    """Wait for something."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.05)


def count(running: Running, pattern: str) -> int:
    """How many lines a process has said that match."""
    return sum(re.search(pattern, line) is not None for line in running.out)
