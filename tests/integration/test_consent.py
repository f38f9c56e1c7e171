"""Consent on demand between real processes: a file that is edited while all of it runs (C4)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import BROKER, Processes, Typing

pytestmark = pytest.mark.integration

#: Seconds in which a call is decided here, and after which it is refused.
DECIDED = 3.0
REFUSED = (4, b"broker: Permission Denied.\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where what is sent is kept."""
    folder = tmp_path / "received"
    folder.mkdir()
    (tmp_path / "sent").write_bytes(b"hello\n")
    return folder


def permit(processes: Processes, change: str, *names: str) -> tuple[int, list[str], list[str]]:
    """Edit the terminal's file; give the status, and what was said."""
    running = processes.start(*BROKER, "permit", change, "--local=Ib.consent", *names)
    return running.wait(), running.out, running.err


def mediator(processes: Processes, *arguments: str) -> int:
    """A mediator that decides soon; give its port."""
    _, port = processes.mediator(f"--status-timeout={DECIDED}", *arguments)
    return port


def terminal(processes: Processes, port: int, folder: Path, *arguments: str) -> None:
    """A terminal that says itself who may call."""
    processes.terminal(
        "Ib",
        port,
        f"--receive={folder}",
        "--policy=ask",
        "--consent-file=Ib.consent",
        *arguments,
    )


def call(processes: Processes, port: int, caller: str, callee: str = "Ib") -> tuple[int, bytes]:
    """Send a file; give the status, and what went wrong."""
    done = processes.broker(port, "call", f"--as={caller}", callee, "--send=sent")
    return done.returncode, done.stderr


class EditedTests:
    """The file, while the terminal runs."""

    def test_the_next_call(self, processes: Processes, folder: Path) -> None:
        """Each edit decides the next call, by the command or by hand (C4, C5)."""
        assert permit(processes, "reject", "Ix") == (0, ["Ib.consent is changed"], [])
        port = mediator(processes)
        terminal(processes, port, folder)
        assert call(processes, port, "Ia") == REFUSED
        assert permit(processes, "add", "Ia", "@family")[0] == 0
        assert call(processes, port, "Ia") == (0, b"")
        assert [path.read_bytes() for path in folder.iterdir()] == [b"hello\n"]
        assert permit(processes, "list") == (0, ["+ Ia", "+ @family", "- Ix"], [])
        assert permit(processes, "delete", "Ia")[0] == 0
        assert call(processes, port, "Ia") == REFUSED
        file = processes.folder / "Ib.consent"
        file.write_text("# by hand\n+ Ix\n")
        assert call(processes, port, "Ix") == (0, b"")
        assert len(list(folder.iterdir())) == 2
        file.write_text("# by hand\n+ Ix\nno such line\n")
        assert call(processes, port, "Ix") == REFUSED
        assert permit(processes, "delete", "Ix")[0] == 1
        file.unlink()
        assert call(processes, port, "Ix") == REFUSED

    def test_two_lists(self, processes: Processes, folder: Path) -> None:
        """To be refused wins, and once it is taken back the other list counts again (C5)."""
        assert permit(processes, "add", "Ia")[0] == 0
        assert permit(processes, "reject", "Ia")[0] == 0
        port = mediator(processes)
        terminal(processes, port, folder)
        assert call(processes, port, "Ia") == REFUSED
        assert permit(processes, "unreject", "Ia")[0] == 0
        assert call(processes, port, "Ia") == (0, b"")

    def test_nobody_can_tell(self, processes: Processes, folder: Path) -> None:
        """Not accepted, off line or unknown: the same words (I6)."""
        permit(processes, "add", "Ia")
        port = mediator(processes)
        terminal(processes, port, folder)
        processes.broker(port, "permit", "add", "--as=Ic", "Ia")
        for callee in ("Ib", "nobody", "Ic"):
            assert call(processes, port, "Ix", callee) == REFUSED

    def test_after_a_restart(self, processes: Processes, folder: Path) -> None:
        """Policy and rejections outlive the mediator; a name is registered again (C1, I8)."""
        permit(processes, "add", "Ia", "Ix")
        running, port = processes.mediator("--store=sqlite:kept.db", "--status-timeout=3")
        with Typing(port) as ib:
            ib.type("REGISTER\nIdentifier:Ib\nReject:Create Ix\nPolicy:Ask\n\n")
            assert "Registration Completed." in ib.read()
        assert running.end() == 0
        port = mediator(processes, "--store=sqlite:kept.db")
        terminal(processes, port, folder, "--name=taro@example.jp")
        assert call(processes, port, "Ix", "taro@example.jp") == REFUSED
        assert call(processes, port, "Ia", "taro@example.jp") == (0, b"")


class CommandTests:
    """The mediator's own list of those who are refused, by the command."""

    def test_reject_and_unreject(self, processes: Processes, folder: Path) -> None:
        """Who is refused may not call, whatever the list says; then may again (C5)."""
        port = mediator(processes)
        processes.terminal("Ib", port, f"--receive={folder}", "--accept=Ia")
        for change, expected in (
            (["reject", "--as=Ib", "Ia"], REFUSED),
            (["unreject", "--as=Ib", "Ia"], (0, b"")),
            (["policy", "--as=Ib", "ask"], REFUSED),
            (["policy", "--as=Ib", "password"], REFUSED),
            (["policy", "--as=Ib", "list"], (0, b"")),
        ):
            done = processes.broker(port, "permit", *change)
            assert (done.returncode, done.stdout) == (0, b"Registration Completed.\n")
            assert call(processes, port, "Ia") == expected


class StartTests:
    """What a terminal refuses to start with (I3)."""

    @pytest.mark.parametrize(
        ("arguments", "text", "why"),
        [
            (["--policy=ask"], "", "ask needs a consent-file"),
            (["--consent-file=Ib.consent"], "", "goes with the policy ask"),
            (["--policy=ask", "--consent-file=nowhere"], "", "No such file"),
            (["--policy=ask", "--consent-file=Ib.consent"], "Ia\n", "line 1"),
            (["--policy=maybe"], "", "neither list nor ask"),
        ],
    )
    def test_refuses(self, processes: Processes, arguments: list[str], text: str, why: str) -> None:
        """It says what is wrong, in a line."""
        (processes.folder / "Ib.consent").write_text(text)
        (processes.folder / "Ib.consent").chmod(0o600)
        running = processes.twistd("broker-terminal", "--identifier=Ib", *arguments)
        assert running.wait() == 1
        assert why in running.said
        assert "Traceback" not in running.said
