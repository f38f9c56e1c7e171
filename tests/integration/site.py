"""A folder of servers, terminals and commands: what tests with real processes do with them."""

from __future__ import annotations

import os
import shutil
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Final

import pytest

from broker.cli.main import main
from broker.mediator.auth.passwords import Passwords
from broker.store.sqlite import SqliteStore
from broker.tables.accounts import AccountChange
from tests.store.waiting import Pump
from tests.support.certificates import Files
from tests.support.processes import LOOPBACK, Done, Processes, Running, Typing

PASSWORD: Final = "correct horse"
DATABASE: Final = "--store=sqlite:broker.db"
COMPLETED: Final = "NOTIFY\nRegistration Completed.\n\n"
#: What ``broker call`` says of a callee that is not to be called, whatever the reason (I6).
REFUSED: Final = Done(4, "", "broker: Permission Denied.\n")


def account(folder: Path, *identifiers: str, password: str = PASSWORD) -> None:
    """Give terminals accounts, in the database of a mediator that does not run."""
    pump = Pump()
    store = SqliteStore(str(folder / "broker.db"), pump, os.urandom)
    pump.result(store.load())
    verifier = pump.result(Passwords(os.urandom).make(password))
    for identifier in identifiers:
        change = AccountChange(identifier, verifier, os.urandom(8).hex())
        pump.result(store.commit([change]))
    pump.result(store.stop())


def password_file(folder: Path, password: str = PASSWORD) -> str:
    """The option that names a file of a password."""
    path = folder / f"{password.replace(' ', '-')}.password"
    path.write_text(f"{password}\n")
    path.chmod(0o600)
    return f"--password-file={path}"


def program(name: str) -> str:
    """A program of the system; where it must be there, its absence is a failure."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is missing, and is required here")
        pytest.skip(f"{name} is not installed")
    return found


def server_options(own: Files) -> list[str]:
    """What a server needs to speak TLS on a free port."""
    return [
        f"--listen-tls={LOOPBACK}",
        f"--certificate={own.certificate}",
        f"--private-key={own.key}",
    ]


def listening_for_tls(running: Running) -> int:
    """Wait until a role listens for TLS; give that port."""
    return int(running.wait_for(r"Listening for TLS on .*:(\d+)$")[1])


def has_no_traceback(*every: Running) -> bool:
    """Whether none of them shows an error of ours, nor anything on standard error."""
    return not any("Traceback" in one.said or "Unhandled" in one.said or one.err for one in every)


class Site(Processes):
    """A mediator, those who use it, and its operator.

    :ivar running: the mediator that ``serve`` has started last
    :ivar port: where it listens
    """

    running: Running
    port: int

    @property
    def login(self) -> str:
        """The option by which every account logs in."""
        return password_file(self.folder)

    def serve(self, *arguments: str) -> Running:
        """Start a mediator."""
        self.running, self.port = self.mediator(*arguments)
        return self.running

    def serve_accounts(self, *arguments: str) -> Running:
        """Start a mediator that asks for passwords."""
        return self.serve("--auth=password", DATABASE, "--trace", *arguments)

    def callee(self, *arguments: str, identifier: str = "Ib") -> Running:
        """Start a terminal that takes files."""
        (self.folder / "in").mkdir(exist_ok=True)
        return self.terminal(identifier, self.port, "--receive=in", *arguments)

    def call(
        self, *arguments: str, caller: str = "Ia", callee: str = "Ib", given: bytes = b""
    ) -> Done:
        """Call a terminal by the command."""
        return self.broker(self.port, "call", f"--as={caller}", callee, *arguments, given=given)

    def permit(self, change: str, *arguments: str, whose: str = "Ib") -> Done:
        """Change a terminal's permits by the command, or show them."""
        return self.broker(self.port, "permit", change, f"--as={whose}", *arguments)

    def received(self) -> list[bytes]:
        """What terminals have received since this was asked before, half files included."""
        found = []
        for path in sorted((self.folder / "in").iterdir()):
            found.append(path.read_bytes())
            path.unlink()
        return found

    def typing(self) -> Typing:
        """A person at a telnet."""
        return Typing(self.port)

    def asks(self, caller: str, callee: str = "Ib") -> str:
        """What a caller is told first of a terminal, where no logins are needed."""
        with self.typing() as typing:
            typing.type(f"QUERY\nIdentifier:{caller}\nCallee:{callee}\n\n")
            return typing.read().split("\n")[1]

    def operate(self, *arguments: str, status: int = 0) -> list[str]:
        """Run a command that needs no reactor, in this process; give the lines that it says."""
        out, err = StringIO(), StringIO()
        with chdir(self.folder), redirect_stdout(out), redirect_stderr(err):
            try:
                became: int | str | None = main(arguments)
            except SystemExit as end:
                became = end.code
        assert became == status, out.getvalue() + err.getvalue()
        return (err if status else out).getvalue().splitlines()
