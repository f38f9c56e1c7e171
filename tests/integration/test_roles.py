"""The roles as users start them: ready, beside each other, and ended in good order."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.integration.site import COMPLETED, Site, has_no_traceback
from tests.support.processes import LOOPBACK, TWISTD, listening

pytestmark = pytest.mark.integration


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
            *(*TWISTD, "--logfile=broker.log", "broker", "--auth=none", f"--listen={LOOPBACK}"),
            "--udp=0:127.0.0.1",
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


#: What no role starts with: an option, and what it says of it.
REFUSED: Final = {
    "port in use": ("--listen={taken}", "cannot listen on {taken}: Address already in use"),
    "another machine's address": (
        "--listen=tcp:0:interface=192.0.2.1",
        "cannot listen on tcp:0:interface=192.0.2.1: Cannot assign requested address",
    ),
    "no such option": ("--bogus", "option --bogus not recognized"),
    "no such file": ("--config=no.toml", "no.toml: No such file or directory"),
}
#: Slow: the others are proven without processes, in tests/service/test_services.py,
#: test_options.py and test_settings.py.
PLAIN: Final = {("broker", "port in use"), ("broker-terminal", "no such option")}


@pytest.fixture
def taken() -> Iterator[str]:
    """A place to listen where another program does."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"


@pytest.mark.parametrize(
    ("role", "what"),
    [
        pytest.param(role, what, marks=() if (role, what) in PLAIN else pytest.mark.slow)
        for role in ("broker", "broker-resolver", "broker-terminal")
        for what in REFUSED
    ],
)
def test_when_a_role_can_not_start_then_it_says_why(
    site: Site, taken: str, role: str, what: str
) -> None:
    """In a line, with status 1, and leaves nothing."""
    option, why = (text.format(taken=taken) for text in REFUSED[what])
    needed = ["--identifier=Ib"] if role == "broker-terminal" else ["--allow-clear-text"]
    running = site.twistd(role, *needed, option)
    assert running.wait() == 1
    assert running.err == [f"{role}: {why}"]
    assert running.out == [] or what != "no such option"
    assert "Traceback" not in running.said
    assert files(site.folder) == []


def test_when_a_daemon_can_not_start_then_twistd_says_so(site: Site, taken: str) -> None:
    """It fails before twistd returns; the whole line is in its log."""
    running = site.start(*TWISTD, "--logfile=x.log", "broker", f"--listen={taken}")
    assert running.wait() == 1
    assert "cannot listen on" in running.said
    log = (site.folder / "x.log").read_text()
    assert f"broker: cannot listen on {taken}: Address already in use\n" in log
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
