"""The roles as users start them: ready, beside each other, and ended in good order."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from tests.integration.site import COMPLETED, Site, has_no_traceback
from tests.support.processes import LOOPBACK, TWISTD, Processes, Running, listening

pytestmark = pytest.mark.integration

NEEDED = {"broker-terminal": ["--identifier=Ib"]}


def files(folder: Path) -> list[str]:
    """What a role leaves in a folder while it runs: its pidfile, and the operator's socket."""
    return sorted(name for name in os.listdir(folder) if name.endswith((".pid", ".admin")))


class StartTests:
    """Starting and ending."""

    def test_when_all_roles_run_in_one_folder_then_each_ends_with_status_0(
        self, site: Site
    ) -> None:
        """Two terminals too. Each is ready when it says so, serves, and at SIGTERM closes what is
        open.
        """
        resolver, resolver_port = site.resolver()
        mediator = site.serve(f"--resolver=tcp:127.0.0.1:{resolver_port}")
        one = site.terminal("Ia", site.port)
        two = site.terminal("山田/太郎", site.port)
        assert len(files(site.folder)) == 5
        assert "broker-terminal-Ia.pid" in files(site.folder)
        pid = (site.folder / "broker.pid").read_text()
        assert int(pid) == mediator.process.pid
        with site.typing() as typing:
            typing.type("REGISTER\nIdentifier:Ic\nAccept:Create Ib,If\n\n")
            assert typing.read() == COMPLETED
            every = [two, one, mediator, resolver]
            assert [running.end() for running in every] == [0, 0, 0, 0]
            assert typing.read_to_end() == ""
        assert has_no_traceback(*every)
        assert files(site.folder) == []
        assert any("Since the start: registrations 3" in line for line in mediator.out)

    def test_when_interrupted_then_a_role_ends_likewise(self, site: Site) -> None:
        """A terminal without its mediator too; and a role that is not ready yet, at SIGTERM."""
        resolver, _ = site.resolver()
        terminal = site.twistd(
            *("broker-terminal", "--identifier=Ib", f"--listen={LOOPBACK}"),
            "--mediator=tcp:127.0.0.1:9",
        )
        mediator = site.twistd("broker", f"--listen={LOOPBACK}")
        mediator.wait_for("starting up")
        assert mediator.end() == 0
        listening(terminal)
        every = (resolver, terminal)
        assert [running.end(signal.SIGINT) for running in every] == [0, 0]
        assert has_no_traceback(mediator, *every)
        assert files(site.folder) == []

    def test_as_a_daemon(self, site: Site) -> None:
        """Without ``-n`` it goes into the background; its port is open when twistd returns."""
        starting = site.start(
            *(*TWISTD, "--logfile=broker.log", "broker", "--auth=none", f"--listen={LOOPBACK}")
        )
        assert starting.wait() == 0, starting.said
        log = (site.folder / "broker.log").read_text()
        pid = int((site.folder / "broker.pid").read_text())
        pidfd = os.pidfd_open(pid)
        try:
            assert "Listening on 127.0.0.1:" in log
            site.port = int(log.partition("Listening on 127.0.0.1:")[2].split()[0])
            with site.typing() as typing:
                typing.type("QUERY\nPERMITS\nIdentifier:Ia\n\n")
                assert typing.read() == "NOTIFY\nAccept:Create\n\n"
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                assert typing.read_to_end() == ""
        finally:
            os.close(pidfd)


# What the plain run leaves out, tests/service/test_services.py and test_options.py prove without
# processes; slow: a process for each.
@pytest.mark.parametrize(
    "role",
    [
        "broker",
        pytest.param("broker-resolver", marks=pytest.mark.slow),
        pytest.param("broker-terminal", marks=pytest.mark.slow),
    ],
)
class RefusalTests:
    """What can't start says why in a line, with status 1, and leaves nothing."""

    def assert_refused(self, site: Processes, running: Running, line: str) -> None:
        """It has ended so."""
        assert running.wait() == 1
        assert running.err == [line]
        assert "Traceback" not in running.said
        assert files(site.folder) == []

    def test_port_in_use(self, site: Site, role: str) -> None:
        """A port in use."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            listen = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
            running = site.twistd(role, *NEEDED.get(role, ()), f"--listen={listen}")
            why = f"{role}: cannot listen on {listen}: Address already in use"
            self.assert_refused(site, running, why)

    @pytest.mark.slow  # another errno of the same call
    def test_another_machines_address(self, site: Site, role: str) -> None:
        """An address that this machine hasn't."""
        listen = "tcp:0:interface=192.0.2.1"
        allowed = [] if role == "broker-terminal" else ["--allow-clear-text"]
        running = site.twistd(role, *NEEDED.get(role, ()), f"--listen={listen}", *allowed)
        why = f"{role}: cannot listen on {listen}: Cannot assign requested address"
        self.assert_refused(site, running, why)

    def test_wrong_option(self, site: Site, role: str) -> None:
        """An option that isn't there."""
        running = site.twistd(role, "--bogus")
        self.assert_refused(site, running, f"{role}: option --bogus not recognized")
        assert running.out == []

    @pytest.mark.slow  # combine() tells it in tests/service/test_settings.py
    def test_unreadable_file(self, site: Site, role: str) -> None:
        """A configuration file that isn't there."""
        running = site.twistd(role, *NEEDED.get(role, ()), "--config=no.toml")
        self.assert_refused(site, running, f"{role}: no.toml: No such file or directory")


def test_when_a_daemon_can_not_start_then_twistd_says_so(site: Site) -> None:
    """It fails before twistd returns; the whole line is in its log."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        running = site.start(*TWISTD, "--logfile=x.log", "broker", f"--listen={listen}")
        assert running.wait() == 1
    assert "cannot listen on" in running.said
    log = (site.folder / "x.log").read_text()
    assert f"broker: cannot listen on {listen}: Address already in use\n" in log
    assert "Traceback" not in running.said + log
    assert files(site.folder) == []


def test_when_a_person_types_then_the_figures_are_answered(site: Site) -> None:
    """Fig. 3, 5 and 12 by hand, bare line ends and all (A1, A2, A9, A11). If the input ends, all
    that was asked for is answered, in order (I11). The same role once more in the folder is refused
    and the first one goes on, until SIGINT ends it.
    """
    running = site.serve("--no-status")
    second = site.twistd("broker", f"--listen={LOOPBACK}")
    assert second.wait() == 1
    assert "Another twistd server is running" in second.said
    assert "Traceback" not in second.said
    with site.typing() as ib, site.typing() as ia:
        ib.type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nPort:1300\n\n")
        assert ib.read() == COMPLETED
        ia.type("query\nidentifier: Ia\ncallee: Ib\n\n")
        assert ia.read() == "NOTIFY\nPermission Denied.\n\n"
        ib.type("REGISTER\r\nIdentifier:Ib\r\nAccept:Add Ia\r\n\r\n")
        assert ib.read() == COMPLETED
        ia.type("QUERY\nIdentifier:Ia\nCallee:Ib\n\n")
        accepted, credentials, _ = ia.read(2).split("\n\n")
        assert accepted == "NOTIFY\nRequest Accepted."
        lines = credentials.split("\n")
        assert lines[:2] == ["NOTIFY", "Callee Address:127.0.0.1"]
        assert lines[2].startswith("Password:")
        assert lines[3].startswith("Encrypt Key:")
        assert ib.read().startswith("NOTIFY\nCaller ID:Ia\nPassword:")
    with site.typing() as typing:
        typing.type(
            "REGISTER\nIdentifier:Ia\nAccept:Create Ib\n\n"
            "QUERY\nIdentifier:Ia\nCallee:Ix\n\nQUERY\nPERMITS\n\n"
        )
        typing.end_input()
        assert typing.read_to_end() == (
            f"{COMPLETED}NOTIFY\nPermission Denied.\n\nNOTIFY\nAccept:Create Ib\n\n"
        )
    assert running.end(signal.SIGINT) == 0
    assert has_no_traceback(running)
