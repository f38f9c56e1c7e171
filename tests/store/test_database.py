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
from broker.store.database_files import application_of
from broker.tables.accounts import AccountChange
from broker.tables.groups import GroupChange
from broker.tables.permits import ASK, Limit, PermitChange
from tests.store.contract import EVER, TOLD, commit_of, disclosure, held_of, made_of
from tests.store.waiting import Keeping, Stores, failure

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
        """Nobody else reads any of its files, whatever the umask (I20)."""
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

    def test_tightened(self, stores: Stores) -> None:
        """One that others could read is theirs no longer."""
        path = filled(stores)
        path.chmod(0o644)
        stores.open()
        assert mode(path) == 0o600

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

    def test_a_strange_path(self, stores: Stores) -> None:
        """What a path is made of has no meaning to SQLite."""
        store, _ = stores.open("a?mode=memory&b%20#c.db")
        stores.commit(store, Ia="Ib")
        assert (stores.folder / "a?mode=memory&b%20#c.db").exists()

    def test_by_a_link(self, stores: Stores) -> None:
        """Through a link it is the same database, so that two names don't make two brokers."""
        store, _ = stores.open()
        stores.commit(store, Ia="Ib")
        (stores.folder / "other.db").symlink_to("broker.db")
        assert "another broker" in refusal(stores, "other.db")


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

    @pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", b"Dear diary, " * 1000])
    def test_no_database(self, stores: Stores, content: bytes) -> None:
        """A file that is none, left as it is."""
        path = stores.folder / "broker.db"
        path.write_bytes(content)
        assert "is damaged, or not a database. Keep it" in refusal(stores)
        assert path.read_bytes() == content

    def test_of_another_program(self, stores: Stores) -> None:
        """A database of something else, left as it is."""
        path = stores.folder / "broker.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE moz_places (id)")
        content = path.read_bytes()
        assert "not a database of this program" in refusal(stores)
        assert path.read_bytes() == content

    def test_newer(self, stores: Stores) -> None:
        """One that a later version has made."""
        edit(filled(stores), "PRAGMA user_version = 99")
        assert "made by a newer broker (its schema is version 99" in refusal(stores)

    def test_truncated(self, stores: Stores) -> None:
        """One whose end is missing, wherever it was cut."""
        path = filled(stores)
        content = path.read_bytes()
        assert len(content) > 5 * 4096
        for length in (*range(4096, len(content), 4096), 50, 3000, len(content) - 1):
            path.write_bytes(content[:length])
            assert "is damaged" in refusal(stores), length

    def test_cut_with_its_log(self, stores: Stores) -> None:
        """One that a crash left within a page, when its log was written back, is no damaged one."""
        store, state = stores.open()
        stores.commit(store, Ia="Ib")
        with stores.crash("crashed.db").open("ab") as file:
            file.write(b"half a page")
        assert stores.look("crashed.db") == (state.epoch, {"Ia": "Ib"})

    def test_overwritten(self, stores: Stores) -> None:
        """One into which something else was written, in whichever page."""
        path = filled(stores)
        content = path.read_bytes()
        randomness = random.Random(3)
        for page in range(len(content) // 4096):
            damaged = bytearray(content)
            damaged[page * 4096 : page * 4096 + 512] = randomness.randbytes(512)
            path.write_bytes(damaged)
            assert "is damaged" in refusal(stores), page

    @pytest.mark.parametrize(
        "accepted",
        [
            *('["Ib", 1, "Ic"]', '["Ib" "Ic"]', '["', "[]", "x", '{"Ib": 1}'),
            *(
                f'["Ib", {entry}]'
                for entry in (
                    *('["Ic"]', '["Ic", 1]', "[null, 1, 1]", '["Ic", "1", 1]', '["Ic", 1, 1.5]'),
                    *('["Ic", 1, 0]', '["Ic", 1, -1]', '["Ic", true, 1]', '["Ic", 1, true]'),
                    *('["Ic", 1e999, 1]', '["Ic", NaN, 1]', f'["Ic", 1{"0" * 400}, 1]'),
                    '["Ic", 1, 1, 1]',
                )
            ),
            "[" * 1500 + '"Ib"' + "]" * 1500,
        ],
    )
    def test_a_list_that_is_none(self, stores: Stores, accepted: str) -> None:
        """One with a list in it that nobody has made: whom it permits can't be told (I3)."""
        self.spoil(stores, f"UPDATE permits SET accepted = '{accepted}' WHERE owner = 'I7'", "list")

    @pytest.mark.parametrize(
        "setting",
        [
            *(f"names = '{names}'" for names in ('["anna", 1]', '["anna"', "", '{"anna": 1}')),
            *("verifier = ''", "generation = '7'", "generation = 'not hexadecimal.'"),
        ],
    )
    def test_an_account_that_is_none(self, stores: Stores, setting: str) -> None:
        """One with an account in it that nobody has made (I3)."""
        self.spoil(stores, f"UPDATE accounts SET {setting}", "account")

    @pytest.mark.parametrize(
        "setting",
        [
            *(f"members = '{members}'" for members in ('["I7", 1]', '["I7"', "", '{"I7": 1}')),
            *("name = ''", "name = '@'", "name = 'family'"),
        ],
    )
    def test_a_group_that_is_none(self, stores: Stores, setting: str) -> None:
        """One with a group in it that nobody has made: whom it holds can't be told (I3)."""
        self.spoil(stores, f"UPDATE groups SET {setting}", "group")

    def spoil(self, stores: Stores, statement: str, what: str) -> None:
        """See that a database is refused in which something of this kind is wrong."""
        edit(filled(stores, 10), "PRAGMA ignore_check_constraints = ON", statement)
        said = refusal(stores)
        assert f" {what} in it can't be read" in said or "is damaged" in said

    def test_used_by_another_program(self, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that another program is writing to."""
        monkeypatch.setattr("broker.store.connection.PATIENCE", 0.0)
        with closing(connect(str(filled(stores)))) as other:
            other.execute("BEGIN IMMEDIATE")
            assert "another program is using it" in refusal(stores)

    def test_refused_twice(self, stores: Stores) -> None:
        """A refusal holds nothing open: what is put right is opened by the same process."""
        path = filled(stores)
        content = path.read_bytes()
        path.write_bytes(b"")
        refusal(stores)
        path.write_bytes(content)
        assert len(stores.look()[1]) == 600

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

    def test_restarted(self, stores: Stores) -> None:
        """It stays, however often it is opened."""
        store, state = stores.open()
        for n in range(3):
            stores.commit(store, Ia=f"I{n}")
            stores.stop(store)
            store, again = stores.open()
            assert again.epoch == state.epoch

    def test_moved(self, stores: Stores) -> None:
        """Moved with its mark it stays too."""
        path = filled(stores)
        before, lists = stores.look()
        path.rename(stores.folder / "moved.db")
        Path(f"{path}-mark").rename(stores.folder / "moved.db-mark")
        assert stores.look("moved.db") == (before, lists)

    def test_an_older_copy(self, stores: Stores) -> None:
        """A copy by hand that is put back, and lacks one change: a withdrawal, say (I2)."""
        store, state = stores.open()
        stores.commit(store, Ia="Ib")
        stores.stop(store)
        path = stores.folder / "broker.db"
        copy = path.read_bytes()
        store, _ = stores.open()
        stores.commit(store, Ia="")
        stores.stop(store)
        path.write_bytes(copy)
        with capturedLogs() as logs:
            epoch, lists = stores.look()
        assert lists == {"Ia": "Ib"}
        assert epoch != state.epoch
        assert any("may have lost changes" in formatEvent(event) for event in logs)
        assert stores.look()[0] == epoch  # drawn once, and kept

    def test_a_copy_with_nothing_lost(self, stores: Stores) -> None:
        """A copy that lacks nothing is as good as the original."""
        path = filled(stores)
        shutil.copy(path, stores.folder / "copy.db")
        before = stores.look()
        shutil.move(stores.folder / "copy.db", path)
        assert stores.look() == before

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

    def test_a_log_without_its_database(self, stores: Stores) -> None:
        """A log is never taken for that of a database which is made anew."""
        store, _ = stores.open()
        stores.commit(store, Ia="Ib")
        log = (stores.folder / "broker.db-wal").read_bytes()
        (stores.folder / "other.db-wal").write_bytes(log)
        assert "is missing, but" in refusal(stores, "other.db")

    def test_a_log_beside_a_backup(self, stores: Stores) -> None:
        """A log that a crash has left is never played into a backup that is put in its place."""
        store, _ = stores.open()
        stores.commit(store, Ia="Ib")
        back_up(str(stores.folder / "broker.db"), str(stores.folder / "other.db"))
        stores.commit(store, Ia="Ib,Ic")
        log = stores.folder / "other.db-wal"
        log.write_bytes((stores.folder / "broker.db-wal").read_bytes())
        assert "move that away too" in refusal(stores, "other.db")
        log.unlink()
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

    def open_later(self, path: Path, **more: Any) -> dict[str, str]:
        """Open a database as a later version would; give its lists as that one keeps them."""
        database = open_database(
            str(path), connect=connect, randomness=os.urandom, schema=LATER, **more
        )
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
        assert shape(path) == shape(stores.folder / "made.db")
        with closing(connect(str(path))) as connection:
            assert list(connection.execute("SELECT epoch FROM store")) == [(epoch,)]

    def test_backup_first(self, stores: Stores) -> None:
        """What it was before lies beside it, and can be put back (I2: under a new epoch)."""
        path = filled(stores)
        epoch, lists = stores.look()
        self.open_later(path)
        saved = stores.folder / "broker.db-v3"
        assert mode(saved) == 0o600
        saved.rename(path)
        again = stores.look()
        assert again[0] != epoch
        assert again[1] == lists

    def test_an_old_backup(self, stores: Stores) -> None:
        """A backup of an earlier version is brought up to date too."""
        path = filled(stores)
        back_up(str(path), str(stores.folder / "copy.db"))
        assert len(self.open_later(stores.folder / "copy.db")) == 600

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
        for item in lists.items():
            database.connection.execute("INSERT INTO permits VALUES (?, ?)", item)
        database.close()
        assert sqlite_version(path) == version
        return database.epoch

    def test_from_version_1(self, stores: Stores, tmp_path: Path) -> None:
        """A database of version 1 is taken over with every list, its order and its epoch (A6).

        It keeps all kinds of change from then on, and is as if made by this version.
        """
        names = {f"I{n}": ["Ib", "山田太郎 大阪府門真市", f"I{n}", 'a"]'] for n in range(3000)}
        epoch = self.old(stores, tmp_path, {owner: json.dumps(a) for owner, a in names.items()})
        store, state = stores.open()
        assert state.epoch == epoch
        before = [PermitChange(owner, tuple(accepted)) for owner, accepted in names.items()]
        assert held_of(state) == made_of(before)
        stores.pump.result(store.commit(commit_of(1)))
        stores.stop(store)
        store, state = stores.open()
        assert held_of(state) == made_of([*before, *commit_of(1)])
        assert stores.pump.result(store.disclosures(TOLD, EVER, 10)) == (disclosure(1, TOLD),)
        stores.open("made.db")
        assert schema_of(stores.folder / "broker.db") == schema_of(stores.folder / "made.db")
        assert sqlite_version(stores.folder / "broker.db") == 3
        assert sqlite_version(stores.folder / "broker.db-v1") == 1

    def test_from_version_2(self, stores: Stores, tmp_path: Path) -> None:
        """Whose list gave its consent, and who refused nobody, is taken over as such (A6).

        It keeps policies from then on, and is as if made by this version.
        """
        epoch = self.old(stores, tmp_path, {"Ia": '["Ib",["@f",null,2]]'}, version=2)
        store, state = stores.open()
        assert state.epoch == epoch
        assert held_of(state) == made_of(
            [PermitChange("Ia", ("Ib", "@f"), (("@f", Limit(None, 2)),))]
        )
        changes = [
            PermitChange("Ia", (), (), ("Ix", "@g"), ASK),
            PermitChange("Ib", ("Ia",), (), (), ASK),
        ]
        stores.pump.result(store.commit(changes))
        stores.stop(store)
        assert held_of(stores.open()[1]) == made_of(changes)
        stores.open("made.db")
        assert schema_of(stores.folder / "broker.db") == schema_of(stores.folder / "made.db")
        assert sqlite_version(stores.folder / "broker.db-v2") == 2

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


def sqlite_version(path: Path) -> int:
    """The version of a database's schema."""
    with closing(connect(str(path))) as connection:
        ((version,),) = connection.execute("PRAGMA user_version")
    return int(version)


def schema_of(path: Path) -> set[tuple[str, str]]:
    """The statements that would make a database, but for their comments."""
    with closing(connect(str(path))) as connection:
        found = connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL")
        return {
            (
                name,
                "\n".join(line for line in sql.splitlines() if not line.lstrip().startswith("--")),
            )
            for name, sql in found
        }


def shape(path: Path) -> set[tuple[str, str, str]]:
    """The tables of a database, with their columns."""
    with closing(connect(str(path))) as connection:
        return set(
            connection.execute(
                "SELECT s.name, c.name, c.type FROM sqlite_schema s, pragma_table_info(s.name) c"
            )
        )


class ScriptTests:
    """Scripts of statements."""

    def test_statements(self) -> None:
        """A semicolon in a text or a comment ends nothing."""
        script = "-- a; b\nINSERT INTO a VALUES (';');\n\nUPDATE a\n    -- why;\n    SET b = 1;\n"
        found = list(versions.statements(script))
        assert found == [
            "INSERT INTO a VALUES (';');\n",
            "UPDATE a\n    -- why;\n    SET b = 1;\n",
        ]

    def test_no_end(self) -> None:
        """A script that ends within a statement is wrong."""
        with pytest.raises(ValueError, match="without an end"):
            list(versions.statements("SELECT 1;\nSELECT 2\n"))


def test_application_of(tmp_path: Path) -> None:
    """What is no database has no application id."""
    path = tmp_path / "x"
    path.write_bytes(b"SQLite format 3\0" + b"x" * 83)
    assert application_of(str(path)) is None
