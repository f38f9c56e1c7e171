"""``twistd broker --store sqlite:PATH``: real processes, killed, restored, refused."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.service.settings.common import parse_store
from broker.store.memory import MemoryStore
from broker.store.sqlite import SqliteStore, make_store
from tests.store.waiting import Pump
from tests.support.processes import BROKER, TWISTD, Processes, Typing

COMPLETED = "NOTIFY\nRegistration Completed.\n\n"
STORE = "--store=sqlite:broker.db"


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Processes that run in a folder of their own, and end with the test."""
    with Processes(tmp_path) as running:
        yield running


def ask(port: int, text: str) -> str:
    """What a mediator answers."""
    with Typing(port) as typing:
        typing.type(text)
        return typing.read()


def epoch_of(port: int) -> str:
    """The epoch that a mediator tells."""
    answer = ask(port, "REGISTER\nIdentifier:Iz\nTransaction:1\n\n")
    return answer.partition("Epoch:")[2].partition("\n")[0]


@pytest.mark.integration
class ProcessesTests:
    """A mediator with a store in a file."""

    def test_killed(self, processes: Processes) -> None:
        """What it has acknowledged is there when it comes back after kill -9 (A6, I8)."""
        running, port = processes.mediator(STORE)
        assert ask(port, "REGISTER\nIdentifier:Ib\nAccept:Create Ia\n\n") == COMPLETED
        epoch = epoch_of(port)
        running.end(signal.SIGKILL)
        (processes.folder / "broker.pid").unlink()
        running, port = processes.mediator(STORE)
        assert ask(port, "QUERY\nPERMITS\nIdentifier:Ib\n\n") == "NOTIFY\nAccept:Create Ia\n\n"
        assert epoch_of(port) == epoch
        assert running.end() == 0
        assert running.err == []

    def test_ended_in_good_order(self, processes: Processes) -> None:
        """Ended, it has closed the database: there is no log beside it."""
        running, port = processes.mediator(STORE)
        ask(port, "REGISTER\nIdentifier:Ib\nAccept:Create Ia\n\n")
        assert (processes.folder / "broker.db-wal").exists()
        assert running.end() == 0
        assert sorted(path.name for path in processes.folder.iterdir()) == [
            "broker.db",
            "broker.db-mark",
        ]

    def test_backup_and_restore(self, processes: Processes) -> None:
        """A backup of a running mediator, put in its place: known by its epoch (I2)."""
        running, port = processes.mediator(STORE)
        ask(port, "REGISTER\nIdentifier:Ib\nAccept:Create Ia\n\n")
        epoch = epoch_of(port)
        copying = processes.start(*BROKER, "backup", STORE, "copy.db")
        assert copying.wait() == 0, copying.said
        ask(port, "REGISTER\nIdentifier:Ib\nAccept:Delete Ia\n\n")
        running.end()
        (processes.folder / "copy.db").replace(processes.folder / "broker.db")
        running, port = processes.mediator(STORE)
        assert ask(port, "QUERY\nPERMITS\nIdentifier:Ib\n\n") == "NOTIFY\nAccept:Create Ia\n\n"
        assert epoch_of(port) != epoch
        assert "may have lost changes" in running.said

    @pytest.mark.parametrize("daemon", [False, True])
    def test_damaged(self, processes: Processes, daemon: bool) -> None:
        """A database that it must not use: one line, status 1, and nothing is opened (I3).

        A daemon gives up before it goes into the background.
        """
        (processes.folder / "broker.db").write_bytes(b"no database")
        how = ("--logfile=broker.log",) if daemon else ("-n",)
        running = processes.start(*TWISTD, *how, "broker", STORE)
        assert running.wait() == 1
        assert [line for line in running.err if "damaged" in line], running.said
        assert "Traceback" not in running.said
        assert "Listening" not in running.said


class NamedTests:
    """A store by its name."""

    def test_parse(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A path is made whole, since a daemon changes its folder."""
        monkeypatch.chdir(tmp_path)
        assert parse_store("memory:") is None
        assert parse_store("sqlite:a:b.db") == str(tmp_path / "a:b.db")
        assert parse_store("sqlite:/x.db") == "/x.db"

    @pytest.mark.parametrize(
        "text", ["", "memory", "memory:x", "sqlite", "sqlite:", "x.db", "sqlite:a\0", "SQLITE:x"]
    )
    def test_none(self, text: str) -> None:
        """What is none is said to be none, with what is offered."""
        with pytest.raises(ValueError, match="only memory: or sqlite:PATH"):
            parse_store(text)

    def test_made(self, tmp_path: Path) -> None:
        """Made, it has touched nothing yet."""
        made = make_store(str(tmp_path / "broker.db"), Pump(), bytes)
        assert isinstance(made, SqliteStore)
        assert list(tmp_path.iterdir()) == []
        assert isinstance(make_store(None, Pump(), bytes), MemoryStore)
