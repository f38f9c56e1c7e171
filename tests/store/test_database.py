"""Opening a database: what is made, what is refused and how, and when the epoch is another."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
from twisted.logger import capturedLogs, formatEvent

from broker.interfaces import Change, StoreFailed
from broker.store import versions
from broker.store.backup import back_up
from broker.store.connection import connect
from broker.store.database import open_database
from broker.tables.accounts import AccountChange
from broker.tables.groups import GroupChange
from broker.tables.permits import ASK, Limit, PermitChange
from tests.store.contract import EVER, TOLD, commit_of, disclosure, held_of, made_of
from tests.store.waiting import Keeping, Stores, changes_of, failure

ROOT: Final = Path(__file__).resolve().parents[2]
#: A later version of the schema, with steps that lead there from the one in use.
LATER: Final = Path(__file__).parent / "later"
#: What earlier brokers made a database with.
EARLIER: Final = Path(__file__).parent / "earlier"


def mode(path: Path) -> int:
    """The permission bits of a file."""
    return path.stat().st_mode & 0o777


def edit(path: Path, *statements: str) -> None:
    """Change a database that is closed, behind the store's back."""
    with closing(connect(str(path))) as connection:
        for statement in statements:
            connection.execute(statement)


def refusal(stores: Stores, name: str = "broker.db", **more: Any) -> str:
    """Why a store does not open; it says it in one line that names the file."""
    store = stores.make(name, **more)
    with pytest.raises(StoreFailed) as refused:
        stores.pump.result(store.load())
    text = str(refused.value)
    assert text.startswith(f"{os.path.realpath(stores.folder / name)}: ")
    assert "\n" not in text
    return text


def filled(stores: Stores, lists: int = 600) -> Path:
    """A database of several pages that is closed; something is in every table."""
    store, _ = stores.open()
    stores.commit(store, **{f"I{n}": f"Ia,Ib,I{n + 1}" for n in range(lists)})
    more: list[Change] = [AccountChange("I7", "v", "0" * 16, ("anna",)), GroupChange("@a", ("I7",))]
    stores.pump.result(store.commit([*more, *(disclosure(n, f"I{n}") for n in range(lists // 4))]))
    stores.stop(store)
    return stores.folder / "broker.db"


class MadeTests:
    """A missing database is made, for its owner alone."""

    def test_modes(self, stores: Stores) -> None:
        """Nobody else reads any of its files, whatever the umask; no longer, if he could (I20)."""
        before = os.umask(0)
        try:
            store, _ = stores.open()
            stores.commit(store, Ia="Ib")
        finally:
            os.umask(before)
        modes = {path.name: mode(path) for path in stores.folder.iterdir()}
        assert modes == dict.fromkeys(
            ("broker.db", "broker.db-wal", "broker.db-shm", "broker.db-mark"), 0o600
        )
        stores.stop(store)
        (stores.folder / "broker.db").chmod(0o644)
        stores.open()
        assert mode(stores.folder / "broker.db") == 0o600

    def test_complete_or_not_there(self, stores: Stores) -> None:
        """A database that could not be completed leaves nothing; the next attempt succeeds."""

        def failing(path: str) -> Any:
            connection = Keeping()(path)
            assert not (stores.folder / "broker.db").exists()

            def fail(sql: str) -> None:
                if sql == "COMMIT":
                    raise failure(sqlite3.SQLITE_FULL)

            connection.before = fail  # type: ignore[attr-defined]
            return connection

        assert "no space is left" in refusal(stores, connect=failing)
        assert {path.name for path in stores.folder.iterdir()} == {"broker.db-mark"}
        (stores.folder / "broker.db-new").write_bytes(b"what a crash has left")
        assert stores.look()[1] == {}

    def test_by_its_path(self, stores: Stores) -> None:
        """What a path is made of has no meaning to SQLite.

        Through a link it is the same database, so that two names don't make two brokers.
        """
        store, _ = stores.open("a?mode=memory&b%20#c.db")
        stores.commit(store, Ia="Ib")
        assert (stores.folder / "a?mode=memory&b%20#c.db").exists()
        (stores.folder / "other.db").symlink_to("a?mode=memory&b%20#c.db")
        assert "another broker" in refusal(stores, "other.db")


HEADER: Final = b"SQLite format 3\0"
with closing(sqlite3.connect(":memory:")) as _connection:
    _connection.execute("CREATE TABLE moz_places (id)")
    OF_ANOTHER_PROGRAM: Final = _connection.serialize()


class RefusedTests:
    """A database of which anything is doubtful is not used, and it is said what to do (I3)."""

    def test_no_folder(self, stores: Stores) -> None:
        """Its folder must be there."""
        assert "make it, or name another" in refusal(stores, "none/broker.db")

    def test_another_broker(self, stores: Stores) -> None:
        """One that another broker has open; free again when that has ended."""
        first, _ = stores.open()
        assert "another broker has it open: end that one first" in refusal(stores)
        stores.commit(first, Ia="Ib")
        stores.stop(first)
        assert stores.look()[1] == {"Ia": "Ib"}

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            *(
                (content, "is damaged, or not a database. Keep it")
                for content in (b"", HEADER, HEADER + b"x" * 83, b"Dear diary, " * 1000)
            ),
            (OF_ANOTHER_PROGRAM, "not a database of this program"),
        ],
    )
    def test_no_database(self, stores: Stores, content: bytes, why: str) -> None:
        """A file that is none, or one of something else, is left as it is."""
        path = stores.folder / "broker.db"
        path.write_bytes(content)
        assert why in refusal(stores)
        assert path.read_bytes() == content

    def test_newer(self, stores: Stores) -> None:
        """One that a later version has made."""
        edit(filled(stores), "PRAGMA user_version = 99")
        assert "made by a newer broker (its schema is version 99" in refusal(stores)

    def test_damaged(self, stores: Stores) -> None:
        """One whose end is missing, wherever it was cut, or with something else in any page.

        A refusal holds nothing open: what is put right is opened by the same process.
        """
        path = filled(stores)
        content = path.read_bytes()
        assert len(content) > 5 * 4096
        pages = range(0, len(content), 4096)
        noise = random.Random(3).randbytes(512)
        for damaged in (
            *(content[:length] for length in (*pages[1:], 50, 3000, len(content) - 1)),
            *(content[:page] + noise + content[page + 512 :] for page in pages),
        ):
            path.write_bytes(damaged)
            assert "is damaged" in refusal(stores)
        path.write_bytes(content)
        assert len(stores.look()[1]) == 600

    def test_cut_with_its_log(self, stores: Stores) -> None:
        """One that a crash left within a page, when its log was written back, is no damaged one."""
        store, state = stores.open()
        stores.commit(store, Ia="Ib")
        with stores.crash("crashed.db").open("ab") as file:
            file.write(b"half a page")
        assert stores.look("crashed.db") == (state.epoch, {"Ia": "Ib"})

    @pytest.mark.parametrize(
        ("what", "setting"),
        [
            # A list that nobody has made: whom it permits can't be told.
            *(
                ("list", f"accepted = '{accepted}' WHERE owner = 'I7'")
                for accepted in (
                    *('["Ib", 1, "Ic"]', '["Ib" "Ic"]', '["', "[]", "x", '{"Ib": 1}'),
                    *('["Ib", ["Ic"]]', '["Ib", ["Ic", 1]]', '["Ib", [null, 1, 1]]'),
                    *('["Ib", ["Ic", "1", 1]]', '["Ib", ["Ic", 1, 1.5]]', '["Ib", ["Ic", 1, 0]]'),
                    *(
                        '["Ib", ["Ic", 1, -1]]',
                        '["Ib", ["Ic", true, 1]]',
                        '["Ib", ["Ic", 1, true]]',
                    ),
                    *('["Ib", ["Ic", 1e999, 1]]', '["Ib", ["Ic", NaN, 1]]'),
                    *(f'["Ib", ["Ic", 1{"0" * 400}, 1]]', '["Ib", ["Ic", 1, 1, 1]]'),
                    "[" * 1500 + '"Ib"' + "]" * 1500,
                )
            ),
            # An account that nobody has made.
            *(
                ("account", f"names = '{names}'")
                for names in ('["anna", 1]', '["anna"', "", '{"anna": 1}')
            ),
            *(("account", "verifier = ''"), ("account", "generation = '7'")),
            ("account", "generation = 'not hexadecimal.'"),
            # A group that nobody has made: whom it holds can't be told.
            *(
                ("group", f"members = '{members}'")
                for members in ('["I7", 1]', '["I7"', "", '{"I7": 1}')
            ),
            *(("group", f"name = '{name}'") for name in ("", "@", "family")),
        ],
    )
    def test_unreadable(self, stores: Stores, what: str, setting: str) -> None:
        """One with something in it that can't be read (I3)."""
        table = {"list": "permits", "account": "accounts", "group": "groups"}[what]
        edit(
            filled(stores, 10),
            "PRAGMA ignore_check_constraints = ON",
            f"UPDATE {table} SET {setting}",
        )
        said = refusal(stores)
        assert f" {what} in it can't be read" in said or "is damaged" in said

    def test_used_by_another_program(self, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that another program is writing to."""
        monkeypatch.setattr("broker.store.connection.PATIENCE", 0.0)
        with closing(connect(str(filled(stores)))) as other:
            other.execute("BEGIN IMMEDIATE")
            assert "another program is using it" in refusal(stores)

    @pytest.mark.parametrize("suffix", ["", "-mark", "folder"])
    @pytest.mark.parametrize("bits", [0o000, 0o400])
    def test_not_ours(self, suffix: str, bits: int) -> None:
        """One that can't be read, or can't be written, by whoever runs the broker."""
        # A folder that others can reach: pytest's own are for their owner alone.
        with tempfile.TemporaryDirectory() as name, Stores(Path(name)) as stores:
            path = filled(stores, 3)
            changed = Path(name if suffix == "folder" else f"{path}{suffix}")
            changed.chmod(bits | (0o100 if suffix == "folder" else 0))
            try:
                said = opened_by_nobody(Path(name))
            finally:
                changed.chmod(0o700)
        assert "must belong to the user that runs the broker" in said
        assert said.count("\n") == 1


def opened_by_nobody(folder: Path) -> str:
    """What a store says that is opened without root's rights, in a process of its own.

    Root is let through everywhere, so it gives all to another, and becomes that one.
    """
    script = """\
import os, sys
from broker.store.sqlite import SqliteStore

folder = sys.argv[1]
if os.geteuid() == 0:
    for path in [folder, *(os.path.join(folder, name) for name in os.listdir(folder))]:
        os.chown(path, 65534, 65534)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
store = SqliteStore(os.path.join(folder, "broker.db"), None, os.urandom)
store.load().addErrback(lambda failure: print(failure.getErrorMessage()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


class EpochTests:
    """The epoch is another whenever changes may be lost, and only then (A6)."""

    def test_nothing_lost(self, stores: Stores) -> None:
        """It stays, however often it is opened; moved with its mark; and put back from a copy."""
        store, state = stores.open()
        path, moved = stores.folder / "broker.db", stores.folder / "moved.db"
        for n in range(3):
            stores.commit(store, Ia=f"I{n}")
            stores.stop(store)
            store, again = stores.open()
            assert again.epoch == state.epoch
        stores.stop(store)
        path.rename(moved)
        Path(f"{path}-mark").rename(f"{moved}-mark")
        assert stores.look("moved.db") == (state.epoch, {"Ia": "I2"})
        shutil.copy(moved, path)
        shutil.move(path, moved)
        assert stores.look("moved.db") == (state.epoch, {"Ia": "I2"})

    @pytest.mark.parametrize("lost", ["a withdrawal", "what was pruned"])
    def test_an_older_copy(self, stores: Stores, lost: str) -> None:
        """A copy by hand that is put back, and lacks one change: a withdrawal, say (I2)."""
        store, state = stores.open()
        stores.pump.result(store.commit([*changes_of(Ia="Ib"), disclosure(1)]))
        stores.stop(store)
        path = stores.folder / "broker.db"
        copy = path.read_bytes()
        store, _ = stores.open()
        if lost == "a withdrawal":
            stores.commit(store, Ia="")
        else:
            assert stores.pump.result(store.prune(5)) == 1
        stores.stop(store)
        assert stores.look()[0] == state.epoch
        path.write_bytes(copy)
        with capturedLogs() as logs:
            epoch, lists = stores.look()
        assert lists == {"Ia": "Ib"}
        assert epoch != state.epoch
        assert any("may have lost changes" in formatEvent(event) for event in logs)
        assert stores.look()[0] == epoch  # drawn once, and kept

    def test_copied_while_in_use(self, stores: Stores) -> None:
        """A copy of the file alone that was made while it was in use, put back after a crash."""
        store, state = stores.open()
        stores.commit(store, Ia="Ib")
        stores.stop(store)
        store, _ = stores.open()
        copy = (stores.folder / "broker.db").read_bytes()
        stores.commit(store, Ia="")
        stores.crash("new.db").write_bytes(copy)
        (stores.folder / "new.db-wal").unlink()
        assert stores.look("new.db")[0] != state.epoch

    @pytest.mark.parametrize("content", [None, b"", b"nonsense\n", b"f" * 16 + b" " + b"0" * 20])
    def test_without_its_mark(self, stores: Stores, content: bytes | None) -> None:
        """Where nobody can tell whether it is the latest, it counts as an older one."""
        path = filled(stores)
        before, lists = stores.look()
        mark = Path(f"{path}-mark")
        mark.unlink()
        if content is not None:
            mark.write_bytes(content)
        after = stores.look()
        assert after[0] != before
        assert after[1] == lists
        assert stores.look() == after

    def test_another_database(self, stores: Stores) -> None:
        """The mark of one says nothing about another, however long that is."""
        one, other = stores.open("one.db"), stores.open("other.db")
        for _ in range(5):
            stores.commit(other[0], Ia="Ib")
        stores.stop(one[0])
        stores.stop(other[0])
        shutil.move(stores.folder / "other.db", stores.folder / "one.db")
        assert stores.look("one.db")[0] not in {one[1].epoch, other[1].epoch}

    def test_a_log_of_another(self, stores: Stores) -> None:
        """A log is never taken for that of a database which is made anew.

        Nor is one that a crash has left played into a backup that is put in its place.
        """
        store, _ = stores.open()
        stores.commit(store, Ia="Ib")
        log, other = (stores.folder / f"{name}.db-wal" for name in ("broker", "other"))
        other.write_bytes(log.read_bytes())
        assert "is missing, but" in refusal(stores, "other.db")
        other.unlink()
        back_up(str(stores.folder / "broker.db"), str(stores.folder / "other.db"))
        stores.commit(store, Ia="Ib,Ic")
        other.write_bytes(log.read_bytes())
        assert "move that away too" in refusal(stores, "other.db")
        other.unlink()
        assert stores.look("other.db")[1] == {"Ia": "Ib"}

    def test_a_crash_after_a_backup_was_opened(self, stores: Stores) -> None:
        """The log of a backup that was put in use is its own, and is not refused later."""
        store, _ = stores.open()
        stores.commit(store, Ia="Ib")
        back_up(str(stores.folder / "broker.db"), str(stores.folder / "other.db"))
        other, state = stores.open("other.db")
        stores.commit(other, Ib="Ic")
        stores.crash("crashed.db", "other.db")
        assert stores.look("crashed.db") == (state.epoch, {"Ia": "Ib", "Ib": "Ic"})


class UpgradeTests:
    """A database of an earlier version is brought up to date, once a backup of it is made."""

    def open_later(self, path: Path) -> dict[str, str]:
        """Open a database as a later version would; give its lists as that one keeps them."""
        database = open_database(str(path), connect=connect, randomness=os.urandom, schema=LATER)
        try:
            rows = list(database.connection.execute("SELECT owner, entries FROM lists"))
            return {owner: ",".join(json.loads(entries)) for owner, entries in rows}
        finally:
            database.close()

    def test_upgraded(self, stores: Stores) -> None:
        """All that was kept is there, and so is the epoch; it is as if made by the new version."""
        path = filled(stores)
        epoch, lists = stores.look()
        assert self.open_later(path) == lists
        assert self.open_later(path) == lists
        assert "newer broker (its schema is version 5" in refusal(stores)
        self.open_later(stores.folder / "made.db")
        columns = "SELECT s.name, c.name, c.type FROM sqlite_schema s, pragma_table_info(s.name) c"
        assert rows_of(path, columns) == rows_of(stores.folder / "made.db", columns)
        assert rows_of(path, "SELECT epoch FROM store") == {(epoch,)}

    def test_backup_first(self, stores: Stores) -> None:
        """What it was before lies beside it, and can be put back (I2: under a new epoch).

        A backup of an earlier version is brought up to date too.
        """
        path = filled(stores)
        epoch, lists = stores.look()
        back_up(str(path), str(stores.folder / "copy.db"))
        self.open_later(path)
        saved = stores.folder / "broker.db-v3"
        assert mode(saved) == 0o600
        saved.rename(path)
        again = stores.look()
        assert again[0] != epoch
        assert again[1] == lists
        assert self.open_later(stores.folder / "copy.db") == lists

    def test_whole_or_not_at_all(self, stores: Stores, tmp_path: Path) -> None:
        """A step that fails half-way leaves the database as it was (I9)."""
        path = filled(stores)
        before = stores.look()
        broken = tmp_path / "broken"
        shutil.copytree(LATER, broken)
        with (broken / "upgrade-4-to-5.sql").open("a") as file:
            file.write("INSERT INTO nowhere VALUES (1);\n")
        with pytest.raises(StoreFailed, match="nowhere"):
            open_database(str(path), connect=connect, randomness=os.urandom, schema=broken)
        assert stores.look() == before

    def old(self, stores: Stores, tmp_path: Path, lists: dict[str, str], version: int = 1) -> str:
        """Make a database of an earlier version, as its broker did; give its epoch."""
        schema = tmp_path / "schema"
        schema.mkdir()
        shutil.copy(EARLIER / f"v{version}.sql", schema)
        path = stores.folder / "broker.db"
        database = open_database(str(path), connect=connect, randomness=os.urandom, schema=schema)
        database.connection.execute("BEGIN")
        database.connection.executemany("INSERT INTO permits VALUES (?, ?)", lists.items())
        database.connection.execute("COMMIT")
        database.close()
        assert sqlite_version(path) == version
        return database.epoch

    @pytest.mark.parametrize("version", [1, 2])
    def test_from_version(self, stores: Stores, tmp_path: Path, version: int) -> None:
        """A database is taken over with every list, its order, its limits and its epoch (A6).

        Whose list gave its consent, and who refused nobody, is taken over as such. It keeps all
        kinds of change from then on, policies too, and is as if made by this version.
        """
        path = stores.folder / "broker.db"
        names = ("Ib", "山田太郎 大阪府門真市", 'a"]')
        before = [PermitChange(f"I{n}", (*names, f"I{n}")) for n in range(3000)]
        lists = {each.owner: json.dumps(each.accepted) for each in before}
        if version == 2:
            before.append(PermitChange("Ia", ("Ib", "@f"), (("@f", Limit(None, 2)),)))
            lists["Ia"] = '["Ib",["@f",null,2]]'
        epoch = self.old(stores, tmp_path, lists, version)
        store, state = stores.open()
        assert (state.epoch, held_of(state)) == (epoch, made_of(before))
        changes = [
            *commit_of(1),
            PermitChange("Ia", (), (), ("Ix", "@g"), ASK),
            PermitChange("Ib", ("Ia",), (), (), ASK),
        ]
        stores.pump.result(store.commit(changes))
        stores.stop(store)
        store, state = stores.open()
        assert held_of(state) == made_of([*before, *changes])
        assert stores.pump.result(store.disclosures(TOLD, EVER, 10)) == (disclosure(1, TOLD),)
        stores.open("made.db")
        assert schema_of(path) == schema_of(stores.folder / "made.db")
        assert sqlite_version(path) == 3
        assert sqlite_version(Path(f"{path}-v{version}")) == version

    @pytest.mark.parametrize("accepted", ['["Ib" "Ic"]', '[""Ib"]'])
    def test_version_1_with_a_list_that_is_none(
        self, stores: Stores, tmp_path: Path, accepted: str
    ) -> None:
        """A list that can't be read is refused on the way as well, and left as it is (I3)."""
        self.old(stores, tmp_path, {"Ia": '["Ib"]', "Ib": accepted})
        for _ in range(2):
            assert "is damaged" in refusal(stores)
        assert sqlite_version(stores.folder / "broker.db") == 1

    def test_every_step(self) -> None:
        """There is a step from each version of the schema to the next, and the newest whole."""
        names = {file.name for file in versions.SCHEMA.iterdir() if file.name.endswith(".sql")}
        last = versions.newest(versions.SCHEMA)
        steps = {f"upgrade-{n}-to-{n + 1}.sql" for n in range(1, last)}
        assert names == steps | {f"v{last}.sql"}

    def test_comments(self) -> None:
        """Above each table and each column stands what it is for."""
        script = versions.SCHEMA / f"v{versions.newest(versions.SCHEMA)}.sql"
        lines = script.read_text("utf-8").splitlines()
        for above, line in pairwise(lines):
            if line.startswith(("CREATE TABLE", "    ")) and not line.strip().startswith("--"):
                assert above.strip().startswith("--"), line


def rows_of(path: Path, sql: str) -> set[tuple[Any, ...]]:
    """What a query finds in a database that is closed."""
    with closing(connect(str(path))) as connection:
        return set(connection.execute(sql))


def sqlite_version(path: Path) -> int:
    """The version of a database's schema."""
    ((version,),) = rows_of(path, "PRAGMA user_version")
    return int(version)


def schema_of(path: Path) -> set[tuple[str, ...]]:
    """The statements that would make a database, but for their comments."""
    return {
        (name, *(line for line in sql.splitlines() if not line.lstrip().startswith("--")))
        for name, sql in rows_of(path, "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL")
    }


def test_statements() -> None:
    """A semicolon in a text or a comment ends nothing; a script has an end."""
    script = "-- a; b\nINSERT INTO a VALUES (';');\n\nUPDATE a\n    -- why;\n    SET b = 1;\n"
    found = list(versions.statements(script))
    assert found == ["INSERT INTO a VALUES (';');\n", "UPDATE a\n    -- why;\n    SET b = 1;\n"]
    with pytest.raises(ValueError, match="without an end"):
        list(versions.statements("SELECT 1;\nSELECT 2\n"))
