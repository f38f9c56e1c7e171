"""The bench runs to its end, so that it does not rot; what it measures is not looked at here."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from math import isnan
from pathlib import Path

import pytest

from benchmarks.counting import Load, Result, Tally, percentile
from benchmarks.credentials import add_accounts
from benchmarks.echo import END, REPLY, REQUEST
from benchmarks.meter import Row
from benchmarks.parts import durable
from benchmarks.peers import PASSWORD, Caller, Entrant, UdpRegistrar
from benchmarks.report import met, tables
from benchmarks.scratch import file_system, scratch_folder, sync_time
from tests.support.processes import ROOT, TETHER

TINY = (
    "--callers=4",
    "--depths=2",
    "--waiting=8",
    "--entrants=2",
    "--repeats=1",
    "--calls=60",
    "--seconds=0.5",
    "--terminals=40",
)
#: Where the databases are that are measured, as a row says it.
WHERE = durable.where(scratch_folder())


#: What each part measures: the unit, and the title of the row.
PARTS = {
    "calls": """
REF  | call, 4 × 2
REF  | call with status, 4 × 2
REF  | call with status, resolver apart, 4 × 2
REF  | adds: call with status, resolver apart, 4 × 2
echo | call with status, at half load, even arrivals
""",
    "memory": """
KiB | memory of an idle terminal, 40 of them
KiB | memory of an idle terminal over TLS, 10 of them
""",
    "durable": f"""
REF | durable registration, 8 waiting, {WHERE}
REF | call with status, ledger behind, {WHERE}, 4 × 2
REF | call with status, ledger first, {WHERE}, 4 × 2
ms  | p99 of a call with status, ledger behind, {WHERE}, at the same rate
ms  | p99 of a call with status, ledger first, {WHERE}, at the same rate
""",
    "tls": """
REF | call over TLS, 4 × 2
REF | call with status over TLS, 4 × 2
""",
    "logins": """
REF | login of whoever it is, in clear text
REF | login of whoever it is, over TLS 1.3
REF | login by certificate, over TLS 1.3
REF | login by resume token, in clear text
REF | login by password, in clear text
ms  | p99 of a call with status, no logins beside it
ms  | p99 of a call with status, a flood of logins by password beside it
    | the logins of that flood
""",
}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the bench to its end."""
    return subprocess.run(
        [*TETHER, sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow  # every part is a run with servers, loads and repeats of its own
@pytest.mark.integration
class BenchTests:
    """Each part of it, as small as it goes."""

    @pytest.mark.parametrize("part", PARTS)
    def test_part(self, tmp_path: Path, part: str) -> None:
        """A run over real processes completes and gives each measure, as a table and as JSON."""
        path = tmp_path / "results"
        done = bench(*TINY, f"--only={part}", "--json", str(path))
        assert done.returncode == 0, done.stderr
        rows = {row["title"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
        assert "REF: the bare echo" in rows
        for line in PARTS[part].strip().split("\n"):
            unit, _, title = line.partition("| ")
            assert title in done.stdout
            row = rows[title]
            assert row["unit"] == unit.strip()
            assert row["results"] or row["values"]
            assert len(row["values"]) == (1 if row["unit"] else 0)
            assert all(isinstance(value, float) for value in row["values"])
        for row in rows.values():
            for result in row["results"]:
                assert result["calls"] >= 1
                assert result["errors"] == 0
                assert result["p50"] <= result["p99"]

    def test_unknown_part(self) -> None:
        """A part that there is not is refused by name before anything is measured."""
        done = bench("--only", "tls,nothing")
        assert done.returncode == 2
        assert "no part is called nothing" in done.stderr

    def test_profile(self) -> None:
        """The profile names the functions of a call with the status query."""
        done = bench("--profile", "--seconds=60", "--calls=2000")  # as long as 2,000 calls take
        assert done.returncode == 0, done.stderr
        assert "calls under the profiler" in done.stdout
        assert "(ask)" in done.stdout  # the question of the status


def test_ref_is_what_its_definition_says() -> None:
    """106 bytes in three lines are answered with 70."""
    assert (len(REQUEST), REQUEST.count(b"\r\n"), REQUEST.endswith(END)) == (106, 4, True)
    assert (len(REPLY), REPLY.count(END)) == (70, 1)


def answer(statement: str, code: int = 200, serial: int = 1) -> bytes:
    """An answer of the server's."""
    return f"NOTIFY\r\n{statement}\r\nTransaction:{serial}\r\nCode:{code}\r\n\r\n".encode()


class LoadTests:
    """A load takes nothing for an answer that is none: each reply, and what is counted."""

    ACCEPTED = answer("Request Accepted.", 100)
    CREDENTIALS = answer("Callee Address:127.0.0.1\r\nPassword:p")
    COMPLETED = answer("Registration Completed.\r\nToken:t2")

    def called(self, *replies: bytes) -> tuple[int, int]:
        """How many calls and errors there are when a caller that asked once has these replies."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            tally = Tally()
            caller = Caller(ours, tally, "Ia", ["Ib"])
            caller.ask(1, 0.0)
            asked = b"QUERY\r\nIdentifier:Ia\r\nCallee:Ib\r\nTransaction:1\r\n\r\n"
            assert theirs.recv(1000) == asked
            for reply in replies:
                caller.received(reply)
            return tally.done, tally.errors

    def test_call(self) -> None:
        """5b and then 5d make a call, however the bytes are cut; a second time they are none."""
        both = self.ACCEPTED + self.CREDENTIALS
        assert {self.called(both[:cut], both[cut:]) for cut in range(len(both))} == {(1, 0)}
        assert self.called(both, self.CREDENTIALS) == (1, 1)

    @pytest.mark.parametrize(
        "replies",
        [
            (CREDENTIALS,),
            (ACCEPTED, CREDENTIALS.replace(b"Password:p\r\n", b"")),
            (ACCEPTED, CREDENTIALS.replace(b"Callee Address:127.0.0.1\r\n", b"")),
            (ACCEPTED, CREDENTIALS.replace(b"Transaction:1", b"Transaction:2")),
            (answer("Permission Denied.", 403),),
        ],
    )
    def test_wrong(self, replies: tuple[bytes, ...]) -> None:
        """A refusal, a reply out of order, of another's or without password is an error."""
        assert self.called(*replies)[1] == 1

    def test_registrations(self) -> None:
        """Each changes the list, and only an acknowledgement of an open one counts."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            tally = Tally()
            registrar = UdpRegistrar(ours, tally, "Ia")
            registrar.ask(2, 0.0)
            first, second, rest = theirs.recv(1000).split(END)
            assert b"\r\nAccept:Create " in first
            assert first.partition(b"Transaction:")[0] != second.partition(b"Transaction:")[0]
            assert rest == b""
            counts = []  # what is answered twice is an error, whatever is counted beside it
            completed = answer("Registration Completed.")
            for reply in (completed, completed, answer("Registration Failed.", 400, 2)):
                registrar.received(reply)
                counts.append((tally.errors, registrar.open()))
            assert counts == [(0, 1), (1, 1), (2, 0)]

    @pytest.mark.parametrize(
        ("proof", "shown", "reply", "counted"),
        [
            ("password", f"Password:{PASSWORD}", COMPLETED, (1, 0, 0)),
            # It brings the token of the next.
            ("", "Token:t1", COMPLETED, (1, 0, 0)),
            # A server that has too much to do refuses; any other refusal is an error.
            ("password", "Password:", answer("Service Unavailable.", 503), (0, 1, 0)),
            ("password", "Password:", answer("Registration Failed.", 401), (0, 0, 1)),
        ],
    )
    def test_login(
        self, proof: str, shown: str, reply: bytes, counted: tuple[int, int, int]
    ) -> None:
        """It shows what proves it, and counts once it is acknowledged."""
        tally = Tally(may_refuse=True)
        with socket.create_server(("127.0.0.1", 0)) as server:
            load = Load("login", server.getsockname()[1], proof=proof)
            entrant = Entrant(load, tally, "Ia", None, lambda connection: None)
            entrant.token = b"t1" if not proof else b""
            entrant.ask(1, 0.0)
            theirs, _ = server.accept()
            with theirs:
                said = theirs.recv(1000)
                entrant.received(reply)
        entrant.socket.close()
        assert f"Identifier:Ia\r\n{shown}".encode() in said
        assert (tally.done, tally.refused, tally.errors) == counted
        assert not entrant.open()
        assert entrant.token == (b"" if proof else b"t2")


class ScratchTests:
    """Where syncs are measured."""

    def test_file_system(self) -> None:
        """The type is the system's own word; what only looks like a file is told apart."""
        assert file_system(scratch_folder()) not in {"", "unknown"}
        if Path("/proc/self").exists():
            assert file_system(Path("/proc/self")) == "proc"

    def test_sync(self, tmp_path: Path) -> None:
        """A sync takes some time."""
        assert sync_time(tmp_path) > 0

    def test_in_memory(self) -> None:
        """A row says so where a sync costs nothing."""
        if file_system(Path("/dev/shm")) == "tmpfs":
            assert durable.where(Path("/dev/shm")) == "on tmpfs, WHERE A SYNC COSTS NOTHING"


@pytest.mark.integration
class AccountTests:
    """Accounts that a load logs in to."""

    def test_kept(self, tmp_path: Path) -> None:
        """They are in the database when the bench says so."""
        path = tmp_path / "broker.db"
        add_accounts(path, ["Ia", "Ib"])
        with closing(sqlite3.connect(path)) as database:
            rows = database.execute("SELECT identifier FROM accounts ORDER BY 1").fetchall()
        assert rows == [("Ia",), ("Ib",)]


class ReportTests:
    """What the table says of a result."""

    @pytest.mark.parametrize(
        ("values", "goal", "verdict"),
        [
            ([1.0, 2.0, 9.0], 2.0, "goal"),
            ([2.5, 3.0, 3.5], 2.0, "must"),
            ([3.1], 2.0, "NO"),
            ([], 2.0, ""),
            ([1.0], None, ""),
        ],
    )
    def test_met(self, values: list[float], goal: float | None, verdict: str) -> None:
        """The median is compared with the goal, and then with what must be; without, nothing."""
        assert met(Row("call", goal=goal, must=goal and 3.0, values=values)) == verdict

    def test_note(self) -> None:
        """What is said of several lines stands below the table, once."""
        shown = tables([Row("one", note="on a disk"), Row("other", note="on a disk")])
        assert "one; other: on a disk." in shown

    def test_unknown_cost(self) -> None:
        """A result without servers has no processor time, and the table none."""
        result = Result(10, 1.0, {}, 0.5, 0.001, 0.002, 0, 0, [])
        assert isnan(result.cpu)
        assert "nan" not in tables([Row("calls", "ms", values=[2.0], results=[result])])

    def test_percentile(self) -> None:
        """Of 200 values, two are above the p99."""
        values = [float(value) for value in range(1, 201)]
        assert percentile(values, 0.99) == 198.0
        assert percentile(values, 0.5) == 100.0
        assert percentile([7.0], 0.99) == 7.0
