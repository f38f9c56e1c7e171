"""A backup: complete while the database is in use, and never taken for what it is a copy of."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from broker.cli import main as cli
from broker.interfaces import StoreFailed
from broker.store import backup
from broker.store.backup import back_up
from tests.store.contract import commit_of
from tests.store.waiting import Keeping, Stores


def back_up_here(stores: Stores, target: str = "copy", name: str = "broker.db") -> Path:
    """Back a store of the test's up, in the test's folder."""
    back_up(str(stores.folder / name), str(stores.folder / target))
    return stores.folder / target


def names(stores: Stores) -> set[str]:
    """The files in the test's folder."""
    return {path.name for path in stores.folder.iterdir()}


class BackupTests:
    """What is in a backup."""

    def test_while_in_use(self, stores: Stores) -> None:
        """All that was committed, in one file for its owner alone; the store works on (I20).

        Lists, accounts, groups and the ledger: all of it, in whole commits (I9).
        """
        store, _ = stores.open()
        for number in range(1, 60):
            stores.pump.result(store.commit(commit_of(number)))
        path = back_up_here(stores)
        stores.pump.result(store.commit(commit_of(60)))
        stores.pump.result(store.prune(60))
        assert path.stat().st_mode & 0o777 == 0o600
        assert names(stores) == {
            *("copy", "broker.db", "broker.db-wal", "broker.db-shm", "broker.db-mark")
        }
        assert stores.commits("copy")[1] == 59

    def test_of_one_moment(self, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is written while it is made is not in it, and doesn't make it begin again (I9)."""
        store, _ = stores.open()
        stores.commit(store, **{f"I{n}": "Ia" for n in range(500)})
        steps = []

        def write_meanwhile(status: int, remaining: int, total: int) -> None:
            steps.append(remaining)
            assert len(steps) < 100  # it would go on for ever
            stores.commit(store, **{f"I{n}": f"Ib,I{len(steps)}" for n in range(500)})

        monkeypatch.setattr(backup, "_STRIDE", 1)
        monkeypatch.setattr(backup, "_look_up", write_meanwhile)
        back_up_here(stores)
        assert len(steps) == 1 + steps[0]
        assert set(stores.look("copy")[1].values()) == {"Ia"}

    def test_while_stopped(self, stores: Stores) -> None:
        """A store that nobody uses can be copied too, and is the same after it."""
        store, _ = stores.open()
        stores.commit(store, Ia="Ib")
        stores.stop(store)
        before = stores.look()
        back_up_here(stores)
        assert stores.look() == before
        assert stores.look("copy")[1] == {"Ia": "Ib"}


@pytest.mark.parametrize("lost", [False, True])
def test_new_epoch(stores: Stores, lost: bool) -> None:
    """A withdrawn permit that is back with a backup doesn't come back silently (I2).

    Even where a backup lacks nothing its epoch is another: nobody can tell.
    """
    store, state = stores.open()
    stores.commit(store, Ia="Ib")
    path = back_up_here(stores)
    if lost:
        stores.commit(store, Ia="")
    stores.stop(store)
    path.replace(stores.folder / "broker.db")
    epoch, lists = stores.look()
    assert lists == {"Ia": "Ib"}
    assert epoch != state.epoch
    assert stores.look()[0] == epoch


def test_each_copy(stores: Stores) -> None:
    """Every place to which a backup is restored has an epoch of its own."""
    stores.open()
    content = back_up_here(stores).read_bytes()
    (stores.folder / "other").write_bytes(content)
    assert stores.look("copy")[0] != stores.look("other")[0]


class RefusedTests:
    """What is not copied, and what is not written over."""

    def refusal(self, stores: Stores, target: str = "copy", name: str = "broker.db") -> str:
        """Why a backup is not made; nothing is left of it."""
        before = {path: path.read_bytes() for path in stores.folder.iterdir()}
        with pytest.raises(StoreFailed) as refused:
            back_up_here(stores, target, name)
        assert {path: path.read_bytes() for path in stores.folder.iterdir()} == before
        return str(refused.value)

    def test_replaces_a_backup(self, stores: Stores) -> None:
        """An earlier backup is replaced, and nothing else that is there."""
        store, _ = stores.open()
        back_up_here(stores)
        stores.commit(store, Ia="Ib")
        back_up_here(stores)
        assert stores.look("copy")[1] == {"Ia": "Ib"}

    @pytest.mark.parametrize(
        ("name", "target", "why"),
        [
            # The database's own files, by whatever name.
            ("broker.db", "broker.db", "is a file of the database itself"),
            ("broker.db", "broker.db-wal", "is a file of the database itself"),
            ("broker.db", "broker.db-mark", "is a file of the database itself"),
            ("broker.db", "link", "is a file of the database itself"),
            # A file that is no backup, and the database of another broker.
            ("broker.db", "diary", "is not a backup: name another file"),
            ("broker.db", "other.db", "is not a backup: name another file"),
            ("broker.db", "none/copy", "No such file"),
            ("nothing.db", "copy", "there is no such database"),
            # A backup is a file like any other: it needs no other means.
            ("backup", "again", "copy the file itself"),
            # What is no database of ours.
            ("empty", "copy", ""),
            ("diary", "copy", ""),
        ],
    )
    def test_refused(self, stores: Stores, name: str, target: str, why: str) -> None:
        """It says why, and leaves everything as it was."""
        store, _ = stores.open()
        stores.open("other.db")
        stores.commit(store, Ia="Ib")
        back_up_here(stores, "backup")
        (stores.folder / "link").symlink_to("broker.db")
        (stores.folder / "diary").write_text("Dear diary, " * 1000)
        (stores.folder / "empty").touch()
        assert why in self.refusal(stores, target, name)

    def test_damaged(self, stores: Stores) -> None:
        """A damaged database doesn't take the place of a good backup."""
        store, _ = stores.open()
        stores.commit(store, **{f"I{n}": "Ia,Ib" for n in range(900)})
        path = back_up_here(stores)
        good = path.read_bytes()
        stores.stop(store)
        with (stores.folder / "broker.db").open("r+b") as file:
            file.seek(3 * 4096)
            file.write(b"\xff" * 4096)
        assert "is damaged" in self.refusal(stores)
        assert path.read_bytes() == good


class CommandTests:
    """``broker backup``."""

    def run(self, stores: Stores, *arguments: str) -> int:
        """Run it on the store of the test."""
        store = f"sqlite:{stores.folder / 'broker.db'}"
        return cli.main(["backup", "--store", store, *arguments])

    def test_done(self, stores: Stores, capsys: pytest.CaptureFixture[str]) -> None:
        """It says what it has done."""
        store, _ = stores.open()
        stores.commit(store, Ia="Ib")
        assert self.run(stores, str(stores.folder / "copy")) == 0
        assert capsys.readouterr().out.startswith(f"{stores.folder / 'copy'} is a copy of ")
        assert stores.look("copy")[1] == {"Ia": "Ib"}

    def test_failed(self, stores: Stores, capsys: pytest.CaptureFixture[str]) -> None:
        """What is wrong is said in a line, and by the exit status."""
        assert self.run(stores, str(stores.folder / "copy")) == 1
        said = capsys.readouterr().err
        assert said.endswith("broker.db: there is no such database\n")
        assert said.count("\n") == 1

    def test_interrupted(self, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
        """Interrupted, it leaves nothing behind, and goes as one that was."""
        store, _ = stores.open()
        stores.commit(store, **{f"I{n}": "Ia,Ib" for n in range(900)})
        before = names(stores)

        def interrupt(status: int, remaining: int, total: int) -> None:
            os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(backup, "_STRIDE", 1)
        monkeypatch.setattr(backup, "_look_up", interrupt)
        assert threading.current_thread() is threading.main_thread()
        assert self.run(stores, str(stores.folder / "copy")) == 130
        assert names(stores) == before

    @pytest.mark.parametrize("store", ["memory:", "broker.db", "sqlite:", "redis:x"])
    def test_wrong(self, store: str, capsys: pytest.CaptureFixture[str]) -> None:
        """A store that has no file, or is none, is wrong usage."""
        with pytest.raises(SystemExit) as wrong:
            cli.main(["backup", "--store", store, "copy"])
        assert wrong.value.code == 2
        assert "is no store" in capsys.readouterr().err

    def test_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        """It explains itself, in lines that fit."""
        with pytest.raises(SystemExit) as done:
            cli.main(["backup", "--help"])
        assert done.value.code == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


def test_no_log_left(stores: Stores) -> None:
    """The copy is whole in itself: it needs no log, and has none (I9)."""
    store, _ = stores.open(connect=Keeping())
    stores.commit(store, Ia="Ib")
    path = back_up_here(stores)
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as connection:
        assert list(connection.execute("PRAGMA journal_mode")) == [("delete",)]
        assert list(connection.execute("SELECT * FROM permits")) == [("Ia", '["Ib"]')]
