"""The messages of the figures typed into the programs that people have: telnet and nc."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.integration.processes import PATIENCE, Processes, Running

pytestmark = pytest.mark.integration


def program(name: str) -> str:
    """A program of the system; where it must be there, its absence is a failure."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is missing, and is required here")
        pytest.skip(f"{name} is not installed")
    return found


class Typist:
    """A person at a telnet."""

    def __init__(self, processes: Processes, port: int) -> None:
        self._telnet: Running = processes.start(program("telnet"), "127.0.0.1", str(port))
        self._telnet.wait_for("Escape character")

    def type(self, *lines: str) -> None:
        """Type lines, then the empty one."""
        stdin = self._telnet.process.stdin
        assert stdin is not None
        for line in (*lines, ""):
            stdin.write(line + "\n")
            stdin.flush()

    def reads(self, *lines: str) -> None:
        """The next message has exactly these lines; ``…`` at a line's end stands for anything."""
        for line in (*lines, ""):
            shown = self._telnet.wait_for("").string.rstrip("\r")
            if line.endswith("…"):
                assert shown.startswith(line[:-1])
            else:
                assert shown == line


class TelnetTests:
    """A whole call by hand, in the words of the figures."""

    def test_a_call(self, processes: Processes) -> None:
        """Ib registers and permits, Ia asks, Ib answers for its status, both get credentials
        (A1, A5, A7, A9–A11, A13), as fig. 3a, 5a, 17a, 17b, 5b, 5e and 5d print them.
        """
        _, port = processes.mediator("--status-timeout=60")
        callee, caller = Typist(processes, port), Typist(processes, port)
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

    def test_refusals(self, processes: Processes) -> None:
        """Who is not permitted reads fig. 5c; a permitted caller reads 17d, 5g (A20)."""
        _, port = processes.mediator("--status-timeout=60")
        callee, caller = Typist(processes, port), Typist(processes, port)
        callee.type("REGISTER", "Identifier:Ib", "Address:127.0.0.1", "Accept:Create Ia")
        callee.reads("NOTIFY", "Registration Completed.")
        caller.type("QUERY", "Identifier:Ia", "Callee:Nobody")
        caller.reads("NOTIFY", "Permission Denied.")
        caller.type("QUERY", "Identifier:Ia", "Callee:Ib")
        callee.reads("QUERY", "STATUS")
        callee.type("NOTIFY", "STATUS Busy.")
        caller.reads("NOTIFY", "Callee is Busy.")
        callee.type("REGISTER", "Identifier:Ib", "Expires:0")
        callee.reads("NOTIFY", "Registration Completed.")
        caller.type("QUERY", "Identifier:Ia", "Callee:Ib")
        caller.reads("NOTIFY", "Callee not Found.")

    def test_a_slip(self, processes: Processes) -> None:
        """A mistyped message is answered with what is wrong, and the connection goes on."""
        _, port = processes.mediator()
        typist = Typist(processes, port)
        typist.type("REGISTR", "Identifier:Ib")
        typist.reads(
            *("NOTIFY", "Bad Message."),
            "Cause:the verb must be REGISTER, QUERY, NOTIFY or REQUEST",
        )
        typist.type("REGISTER", "Identifier:Ib", "Accept:Create Ia")
        typist.reads("NOTIFY", "Registration Completed.")


class NcTests:
    """Messages out of a file, through nc, which ends its input at once."""

    def test_everything_is_answered(self, processes: Processes) -> None:
        """Five hundred messages piped through nc get five hundred answers, in their order."""
        _, port = processes.mediator()
        messages = "".join(
            f"REGISTER\nIdentifier:Ib\nAccept:Add I{n}\n\nQUERY\nIdentifier:Ib\nCallee:I{n}\n\n"
            for n in range(250)
        )
        done = subprocess.run(
            [program("nc"), "-N", "127.0.0.1", str(port)],
            input=messages.encode(),
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
        answers = done.stdout.decode().replace("\r\n", "\n")
        assert answers == "NOTIFY\nRegistration Completed.\n\nNOTIFY\nPermission Denied.\n\n" * 250
