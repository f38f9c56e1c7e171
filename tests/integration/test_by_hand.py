"""The messages of the figures typed into the programs that people have: telnet, openssl, nc."""

from __future__ import annotations

import re
import shlex
import subprocess
from typing import Final

import pytest

from tests.integration.site import COMPLETED, Site, program
from tests.support.processes import PATIENCE, ROOT, TWISTD, Processes, Running

pytestmark = pytest.mark.integration


class Typist:
    """A person at a telnet, or at another program of the kind."""

    def __init__(self, processes: Processes, *arguments: str) -> None:
        self._program: Running = processes.start(program(arguments[0]), *arguments[1:])
        if arguments[0] == "telnet":
            self._program.wait_for("Escape character")

    def type(self, *lines: str) -> None:
        """Type lines, then the empty one."""
        for line in (*lines, ""):
            self.type_line(line)

    def type_line(self, line: str) -> None:
        """Type one line."""
        self._program.type(line + "\n")

    def read_line(self) -> str:
        """The next line that is shown."""
        return self._program.wait_for("").string.rstrip("\r")

    def reads(self, *lines: str) -> None:
        """The next message has exactly these lines; ``…`` at a line's end stands for anything."""
        for line in (*lines, ""):
            shown = self.read_line()
            if line.endswith("…"):
                assert shown.startswith(line[:-1])
            else:
                assert shown == line


def telnet(site: Site) -> Typist:
    """A person at a telnet."""
    return Typist(site, "telnet", "127.0.0.1", str(site.port))


@pytest.fixture(scope="class")
def served(shared: Site) -> Site:
    """A mediator that waits for a person's answer."""
    shared.serve("--status-timeout=60")
    return shared


class TelnetTests:
    """Whole calls by hand, in the words of the figures."""

    def test_a_call(self, served: Site) -> None:
        """Ib registers and permits, Ia asks, Ib answers for its status, both get credentials
        (A1, A5, A7, A9–A11, A13), as fig. 3a, 5a, 17a, 17b, 5b, 5e and 5d print them. A mistyped
        message is answered with what is wrong, and the connection goes on.
        """
        callee, caller = telnet(served), telnet(served)
        callee.type("REGISTR", "Identifier:Ib")
        callee.reads(
            *("NOTIFY", "Bad Message."),
            "Cause:the verb must be REGISTER, QUERY, NOTIFY or REQUEST",
        )
        callee.type("REGISTER", "Identifier:Ib", "Address:127.0.0.1")
        callee.reads("NOTIFY", "Registration Completed.")
        callee.type("REGISTER", "Identifier:Ib", "Accept:Create Ia,If")
        callee.reads("NOTIFY", "Registration Completed.")
        caller.type("QUERY", "Identifier:Ia", "Callee:Ib")
        callee.reads("QUERY", "STATUS")
        callee.type("NOTIFY", "STATUS Acceptable.")
        caller.reads("NOTIFY", "Request Accepted.")
        session = ("Session:…", "Expires:3600", "Reply Password:…")
        callee.reads("NOTIFY", "Caller ID:Ia", "Password:…", "Encrypt Key:…", *session)
        caller.reads(
            *("NOTIFY", "Callee Address:127.0.0.1", "Password:…", "Encrypt Key:…"),
            *("Callee Port:1203", "Callee:Ib", *session),
        )

    def test_refusals(self, served: Site) -> None:
        """Who is not permitted reads fig. 5c; a permitted caller reads 17d, 5g (A20)."""
        callee, caller = telnet(served), telnet(served)
        callee.type("REGISTER", "Identifier:Ic", "Address:127.0.0.1", "Accept:Create Ia")
        callee.reads("NOTIFY", "Registration Completed.")
        caller.type("QUERY", "Identifier:Ia", "Callee:Nobody")
        caller.reads("NOTIFY", "Permission Denied.")
        caller.type("QUERY", "Identifier:Ia", "Callee:Ic")
        callee.reads("QUERY", "STATUS")
        callee.type("NOTIFY", "STATUS Busy.")
        caller.reads("NOTIFY", "Callee is Busy.")
        callee.type("REGISTER", "Identifier:Ic", "Expires:0")
        callee.reads("NOTIFY", "Registration Completed.")
        caller.type("QUERY", "Identifier:Ia", "Callee:Ic")
        caller.reads("NOTIFY", "Callee not Found.")

    def test_nc(self, served: Site) -> None:
        """It ends its input at once; five hundred messages piped through it get five hundred
        answers, in their order.
        """
        messages = "".join(
            f"REGISTER\nIdentifier:Id\nAccept:Add I{n}\n\nQUERY\nIdentifier:Id\nCallee:I{n}\n\n"
            for n in range(250)
        )
        done = subprocess.run(
            [program("nc"), "-N", "127.0.0.1", str(served.port)],
            input=messages.encode(),
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
        answers = done.stdout.decode().replace("\r\n", "\n")
        assert answers == f"{COMPLETED}NOTIFY\nPermission Denied.\n\n" * 250


#: A line of a session: where it happens, a name or nothing; what kind it is; and the text.
_LINE: Final = re.compile(r"(?P<who>[A-Za-z]*)(?P<kind>[$<>])(?: (?P<text>.*))?")
_BLOCK: Final = re.compile(r"^```session\n(.*?)^```", re.M | re.S)
_BLANK: Final = re.compile(r"\{([^}]*)\}")


class Session:
    """A session as a document prints it, done again: each line is typed, or must be shown.

    ``$`` begins a command, ``Ib$`` one that Ib types into, ``Ib>`` what he types, ``Ib<`` what he
    is shown, and any other line what the command before has printed. ``{what}`` stands for a text
    that comes new each time. Ports are those that the mediator happens to get.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._people: dict[str, Typist] = {}
        self._filled: dict[str, str] = {}
        self._ports: dict[str, str] = {}
        self._printed = ""

    def play(self, text: str) -> None:
        """Do what a text says, from its first line to its last."""
        for line in filter(None, text.splitlines()):
            found = _LINE.fullmatch(line)
            if found is None:
                assert self._matches(line, self._printed), self._printed
                continue
            who, kind, said = found["who"], found["kind"], found["text"] or ""
            if kind == "<":
                shown = self._people[who].read_line()
                assert self._matches(said, shown), (said, shown)
            elif kind == ">":
                self._people[who].type_line(self._fill(said))
            elif who:
                self._people[who] = Typist(self._processes, *self._command(said))
            else:
                self._run(self._command(said))

    def _run(self, command: list[str]) -> None:
        if command[0] == "twistd":
            self._listen(command[1:])
            return
        assert command[0] == "broker"
        done = self._processes.run(*command[1:])
        assert done.status == 0, done.err
        self._printed = done.out

    def _listen(self, options: list[str]) -> None:
        """Start the mediator on ports that are free."""
        free = [option.replace("tcp:1202:", "tcp:0:") for option in options]
        free += ["--listen=tcp:0:interface=127.0.0.1", "--udp=none"]
        running = self._processes.start(*TWISTD, *free)
        for port, what in (("1201", "Listening on"), ("1202", "Listening for TLS on")):
            self._ports[port] = running.wait_for(rf"{what} .*:(\d+)$")[1]

    def _command(self, text: str) -> list[str]:
        for port, real in self._ports.items():
            text = re.sub(rf"\b{port}\b", real, text)
        return shlex.split(text)

    def _fill(self, text: str) -> str:
        return _BLANK.sub(lambda found: self._filled[found[1]], text)

    def _matches(self, expected: str, shown: str) -> bool:
        """Whether such a line is there; what it leaves open is kept for later."""
        parts = _BLANK.split(expected)
        pattern = "".join(
            "(.+)" if index % 2 else re.escape(part) for index, part in enumerate(parts)
        )
        found = re.search(rf"^{pattern}$", shown, re.M)
        if found is not None:
            self._filled.update(zip(parts[1::2], found.groups(), strict=True))
        return found is not None


class ConversationsTests:
    """The sessions with passwords in docs/conversations.md."""

    def test_with_passwords(self, site: Site) -> None:
        """They work as they stand there, with openssl over TLS and with telnet (A19, A21, I25)."""
        sessions = _BLOCK.findall((ROOT / "docs" / "conversations.md").read_text("utf-8"))
        assert len(sessions) == 2
        session = Session(site)
        for text in sessions:
            session.play(text)
