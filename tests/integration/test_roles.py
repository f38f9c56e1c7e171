"""The roles as users start them: ready, beside each other, and ended in good order."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from tests.support.processes import TWISTD, Processes, Running, Typing, listening

pytestmark = pytest.mark.integration

ROLES = ["broker", "broker-resolver", "broker-terminal"]
NEEDED = {"broker-terminal": ["--identifier=Ib"]}


def files(folder: Path, ending: str = ".pid") -> list[str]:
    """The files in a folder that end so."""
    return sorted(name for name in os.listdir(folder) if name.endswith(ending))


def assert_no_traceback(*every: Running) -> None:
    """Nobody has anything to be ashamed of."""
    for running in every:
        assert "Traceback" not in running.said, running.said
        assert "Unhandled" not in running.said, running.said
        assert running.err == []


class StartTests:
    """Starting and ending."""

    @pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
    def test_mediator(self, processes: Processes, by: signal.Signals) -> None:
        """It is ready when it says so, serves, and ends with status 0, closing what is open."""
        running, port = processes.mediator()
        assert files(processes.folder) == ["broker.pid"]
        pid = (processes.folder / "broker.pid").read_text()
        assert int(pid) == running.process.pid
        with Typing(port) as typing:
            typing.type("REGISTER\nIdentifier:Ia\nAccept:Create Ib,If\n\n")
            assert typing.read() == "NOTIFY\nRegistration Completed.\n\n"
            assert running.end(by) == 0
            assert typing.read_to_end() == ""
        assert_no_traceback(running)
        assert files(processes.folder) == []
        assert any("Since the start: registrations 1" in line for line in running.out)

    @pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
    @pytest.mark.parametrize("role", ["broker-resolver", "broker-terminal"])
    def test_others(self, processes: Processes, role: str, by: signal.Signals) -> None:
        """So do the others, a terminal without its mediator too."""
        arguments = [*NEEDED.get(role, ()), "--listen=tcp:0:interface=127.0.0.1"]
        if role == "broker-terminal":
            arguments.append("--mediator=tcp:127.0.0.1:9")
        running = processes.twistd(role, *arguments)
        listening(running)
        assert running.end(by) == 0
        assert_no_traceback(running)
        assert files(processes.folder) == []

    def test_ended_while_it_starts(self, processes: Processes) -> None:
        """A signal that comes before it is ready ends it just as well."""
        running = processes.twistd("broker", "--listen=tcp:0:interface=127.0.0.1")
        running.wait_for("starting up")
        assert running.end() == 0
        assert_no_traceback(running)
        assert files(processes.folder) == []

    def test_side_by_side(self, processes: Processes) -> None:
        """All roles run in one folder, two terminals too."""
        resolver, resolver_port = processes.resolver()
        mediator, port = processes.mediator(f"--resolver=tcp:127.0.0.1:{resolver_port}")
        one = processes.terminal("Ia", port)
        two = processes.terminal("山田/太郎", port)
        assert len(files(processes.folder)) == 4
        assert "broker-terminal-Ia.pid" in files(processes.folder)
        every = [two, one, mediator, resolver]
        assert [running.end() for running in every] == [0, 0, 0, 0]
        assert_no_traceback(*every)
        assert files(processes.folder) == []

    def test_a_second_of_the_same(self, processes: Processes) -> None:
        """The same role once more in the folder is refused, and the first one goes on."""
        _, port = processes.mediator()
        second = processes.twistd("broker", "--listen=tcp:0:interface=127.0.0.1")
        assert second.wait() == 1
        assert "Another twistd server is running" in second.said
        assert "Traceback" not in second.said
        with Typing(port) as typing:
            typing.type("QUERY\nPERMITS\nIdentifier:Ia\n\n")
            assert typing.read() == "NOTIFY\nAccept:Create\n\n"

    def test_as_a_daemon(self, processes: Processes) -> None:
        """Without ``-n`` it goes into the background; its port is open when twistd returns."""
        starting = processes.start(
            *(*TWISTD, "--logfile=broker.log", "broker", "--auth=none"),
            "--listen=tcp:0:interface=127.0.0.1",
        )
        assert starting.wait() == 0, starting.said
        log = (processes.folder / "broker.log").read_text()
        pid = int((processes.folder / "broker.pid").read_text())
        pidfd = os.pidfd_open(pid)
        try:
            assert "Listening on 127.0.0.1:" in log
            port = int(log.partition("Listening on 127.0.0.1:")[2].split()[0])
            with Typing(port) as typing:
                typing.type("QUERY\nPERMITS\nIdentifier:Ia\n\n")
                assert typing.read() == "NOTIFY\nAccept:Create\n\n"
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                assert typing.read_to_end() == ""
        finally:
            os.close(pidfd)

    def test_configured_by_a_file(self, processes: Processes) -> None:
        """A configuration file does what the options do."""
        (processes.folder / "mine.toml").write_text(
            'listen = ["tcp:0:interface=127.0.0.1"]\nauth = "none"\ntrace = true\n'
        )
        running = processes.twistd("broker", "--config=mine.toml")
        with Typing(listening(running)) as typing:
            typing.type("REGISTER\nIdentifier:Ia\n\n")
            running.wait_for(r"< REGISTER / Identifier:Ia$")
            running.wait_for(r"Ia > NOTIFY / Registration Completed\.$")


class RefusalTests:
    """What can't start says why in a line, with status 1, and leaves nothing."""

    def assert_refused(self, processes: Processes, running: Running, line: str) -> None:
        """It has ended so."""
        assert running.wait() == 1
        assert running.err == [line]
        assert "Traceback" not in running.said
        assert files(processes.folder) == []

    @pytest.mark.parametrize("role", ROLES)
    def test_port_in_use(self, processes: Processes, role: str) -> None:
        """A port in use."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            listen = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
            running = processes.twistd(role, *NEEDED.get(role, ()), f"--listen={listen}")
            why = f"{role}: cannot listen on {listen}: Address already in use"
            self.assert_refused(processes, running, why)

    @pytest.mark.parametrize("role", ROLES)
    def test_somebody_elses_address(self, processes: Processes, role: str) -> None:
        """An address that this machine hasn't."""
        listen = "tcp:0:interface=192.0.2.1"
        allowed = [] if role == "broker-terminal" else ["--allow-clear-text"]
        running = processes.twistd(role, *NEEDED.get(role, ()), f"--listen={listen}", *allowed)
        why = f"{role}: cannot listen on {listen}: Cannot assign requested address"
        self.assert_refused(processes, running, why)

    @pytest.mark.parametrize("role", ROLES)
    def test_wrong_option(self, processes: Processes, role: str) -> None:
        """An option that isn't there."""
        running = processes.twistd(role, "--bogus")
        self.assert_refused(processes, running, f"{role}: option --bogus not recognized")
        assert running.out == []

    @pytest.mark.parametrize("role", ROLES)
    def test_unreadable_file(self, processes: Processes, role: str) -> None:
        """A configuration file that isn't there."""
        running = processes.twistd(role, *NEEDED.get(role, ()), "--config=no.toml")
        why = f"{role}: no.toml: No such file or directory"
        self.assert_refused(processes, running, why)

    def test_no_secret(self, processes: Processes) -> None:
        """A secret's file that isn't there."""
        running = processes.twistd(
            "broker-resolver", "--listen=tcp:0:interface=127.0.0.1", "--mediator-secret=none"
        )
        path = processes.folder / "none"
        why = f"broker-resolver: {path}: No such file or directory"
        self.assert_refused(processes, running, why)

    def test_beyond_loopback(self, processes: Processes) -> None:
        """A listener that other machines reach, with nobody proven and nothing encrypted (I25)."""
        running = processes.twistd("broker", "--listen=tcp:0")
        assert running.wait() == 1
        (line,) = running.err
        assert line.startswith("broker: --listen: tcp:0 can be reached from other machines")
        assert "--allow-clear-text" in line

    def test_all_at_once(self, processes: Processes) -> None:
        """Several errors are told together, a line each."""
        running = processes.twistd("broker", "--store=redis:x", "--auth=ldap", "--causes=some")
        assert running.wait() == 1
        assert len(running.err) == 3

    def test_daemon(self, processes: Processes) -> None:
        """As a daemon it fails before twistd returns; the whole line is in its log."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            listen = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
            running = processes.start(*TWISTD, "--logfile=x.log", "broker", f"--listen={listen}")
            assert running.wait() == 1
        assert "cannot listen on" in running.said
        log = (processes.folder / "x.log").read_text()
        assert f"broker: cannot listen on {listen}: Address already in use\n" in log
        assert "Traceback" not in running.said + log
        assert files(processes.folder) == []


class FiguresTests:
    """The messages of the figures, typed."""

    def test_by_hand(self, processes: Processes) -> None:
        """Fig. 3, 5 and 12 as a person types them, bare line ends and all (A1, A2, A9, A11)."""
        _, port = processes.mediator("--no-status")
        with Typing(port) as ib, Typing(port) as ia:
            ib.type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nPort:1300\n\n")
            assert ib.read() == "NOTIFY\nRegistration Completed.\n\n"
            ia.type("query\nidentifier: Ia\ncallee: Ib\n\n")
            assert ia.read() == "NOTIFY\nPermission Denied.\n\n"
            ib.type("REGISTER\r\nIdentifier:Ib\r\nAccept:Add Ia\r\n\r\n")
            assert ib.read() == "NOTIFY\nRegistration Completed.\n\n"
            ia.type("QUERY\nIdentifier:Ia\nCallee:Ib\n\n")
            accepted, credentials, _ = ia.read(2).split("\n\n")
            assert accepted == "NOTIFY\nRequest Accepted."
            lines = credentials.split("\n")
            assert lines[:2] == ["NOTIFY", "Callee Address:127.0.0.1"]
            assert lines[2].startswith("Password:")
            assert lines[3].startswith("Encrypt Key:")
            assert ib.read().startswith("NOTIFY\nCaller ID:Ia\nPassword:")

    def test_through_a_pipe(self, processes: Processes) -> None:
        """Who ends the input still gets all that was asked for, in order (I11)."""
        _, port = processes.mediator()
        with Typing(port) as typing:
            typing.type(
                "REGISTER\nIdentifier:Ia\nAccept:Create Ib\n\n"
                "QUERY\nIdentifier:Ia\nCallee:Ix\n\nQUERY\nPERMITS\n\n"
            )
            typing.end_input()
            assert typing.read_to_end() == (
                "NOTIFY\nRegistration Completed.\n\n"
                "NOTIFY\nPermission Denied.\n\n"
                "NOTIFY\nAccept:Create Ib\n\n"
            )
