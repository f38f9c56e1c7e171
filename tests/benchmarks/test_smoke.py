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
from tests.support.processes import TETHER

ROOT = Path(__file__).resolve().parents[2]
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

    @pytest.mark.parametrize(
        ("part", "expected"),
        [
            (
                "calls",
                {
                    "call, 4 × 2": "REF",
                    "call with status, 4 × 2": "REF",
                    "call with status, resolver apart, 4 × 2": "REF",
                    "adds: call with status, resolver apart, 4 × 2": "REF",
                    "call with status, at half load, even arrivals": "echo",
                },
            ),
            (
                "memory",
                {
                    "memory of an idle terminal, 40 of them": "KiB",
                    "memory of an idle terminal over TLS, 10 of them": "KiB",
                },
            ),
            (
                "durable",
                {
                    f"durable registration, 8 waiting, {WHERE}": "REF",
                    f"call with status, ledger behind, {WHERE}, 4 × 2": "REF",
                    f"call with status, ledger first, {WHERE}, 4 × 2": "REF",
                    f"p99 of a call with status, ledger behind, {WHERE}, at the same rate": "ms",
                    f"p99 of a call with status, ledger first, {WHERE}, at the same rate": "ms",
                },
            ),
            ("tls", {"call over TLS, 4 × 2": "REF", "call with status over TLS, 4 × 2": "REF"}),
            (
                "logins",
                {
                    "login of whoever it is, in clear text": "REF",
                    "login of whoever it is, over TLS 1.3": "REF",
                    "login by certificate, over TLS 1.3": "REF",
                    "login by resume token, in clear text": "REF",
                    "login by password, in clear text": "REF",
                    "p99 of a call with status, no logins beside it": "ms",
                    "p99 of a call with status, a flood of logins by password beside it": "ms",
                    "the logins of that flood": "",
                },
            ),
        ],
    )
    def test_part(self, tmp_path: Path, part: str, expected: dict[str, str]) -> None:
        """A run over real processes completes and gives each measure, as a table and as JSON."""
        path = tmp_path / "results"
        done = bench(*TINY, f"--only={part}", "--json", str(path))
        assert done.returncode == 0, done.stderr
        rows = {row["title"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
        assert "REF: the bare echo" in rows
        for title, unit in expected.items():
            assert title in done.stdout
            row = rows[title]
            assert row["unit"] == unit
            assert row["results"] or row["values"]
            assert len(row["values"]) == (1 if unit else 0)
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
        done = bench("--profile", "--seconds", "0.3")
        assert done.returncode == 0, done.stderr
        assert "calls under the profiler" in done.stdout
        assert "(_ask_status)" in done.stdout


class EchoTests:
    """REF is what its definition says."""

    def test_sizes(self) -> None:
        """106 bytes in three lines are answered with 70."""
        assert len(REQUEST) == 106
        assert REQUEST.count(b"\r\n") == 4
        assert REQUEST.endswith(END)
        assert len(REPLY) == 70
        assert REPLY.count(END) == 1


class CallerTests:
    """The load takes nothing for an answer that is none."""

    ACCEPTED = b"NOTIFY\r\nRequest Accepted.\r\nTransaction:1\r\nCode:100\r\n\r\n"
    CREDENTIALS = (
        b"NOTIFY\r\nCallee Address:127.0.0.1\r\nPassword:p\r\nTransaction:1\r\nCode:200\r\n\r\n"
    )

    def answered(self, *replies: bytes) -> Tally:
        """What is counted when a caller that asked once has these replies."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            tally = Tally()
            caller = Caller(ours, tally, "Ia", ["Ib"])
            caller.ask(1, 0.0)
            asked = b"QUERY\r\nIdentifier:Ia\r\nCallee:Ib\r\nTransaction:1\r\n\r\n"
            assert theirs.recv(1000) == asked
            for reply in replies:
                caller.received(reply)
            return tally

    def test_call(self) -> None:
        """5b and then 5d make a call, however the bytes are cut."""
        both = self.ACCEPTED + self.CREDENTIALS
        for cut in range(len(both)):
            tally = self.answered(both[:cut], both[cut:])
            assert (tally.done, tally.errors) == (1, 0)

    @pytest.mark.parametrize(
        "replies",
        [
            (CREDENTIALS,),
            (ACCEPTED, CREDENTIALS.replace(b"Password:p\r\n", b"")),
            (ACCEPTED, CREDENTIALS.replace(b"Callee Address:127.0.0.1\r\n", b"")),
            (ACCEPTED, CREDENTIALS.replace(b"Transaction:1", b"Transaction:2")),
            (ACCEPTED, CREDENTIALS, CREDENTIALS),
            (b"NOTIFY\r\nPermission Denied.\r\nTransaction:1\r\nCode:403\r\n\r\n",),
        ],
    )
    def test_wrong(self, replies: tuple[bytes, ...]) -> None:
        """A refusal, a reply out of order, of another's, twice, or without password is an error."""
        assert self.answered(*replies).errors == 1

    def test_twice(self) -> None:
        """A call that is answered twice is one call."""
        assert self.answered(self.ACCEPTED, self.CREDENTIALS, self.CREDENTIALS).done == 1


class RegistrarTests:
    """The load of durable registrations takes an acknowledgement for one registration."""

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
            completed = b"NOTIFY\r\nRegistration Completed.\r\nTransaction:1\r\nCode:200\r\n\r\n"
            registrar.received(completed)
            assert (tally.done, tally.errors, registrar.open()) == (1, 0, 1)
            registrar.received(completed)
            assert tally.errors == 1
            registrar.received(
                b"NOTIFY\r\nRegistration Failed.\r\nTransaction:2\r\nCode:400\r\n\r\n"
            )
            assert (tally.errors, registrar.open()) == (2, 0)


class EntrantTests:
    """The load of logins shows what it is to prove itself with, and believes no refusal."""

    COMPLETED = (
        b"NOTIFY\r\nRegistration Completed.\r\nToken:t2\r\nTransaction:1\r\nCode:200\r\n\r\n"
    )

    def entered(
        self, proof: str, *answers: bytes, token: bytes = b""
    ) -> tuple[bytes, Entrant, Tally]:
        """What one says that logs in once, and what it makes of these answers."""
        tally = Tally(may_refuse=True)
        with socket.create_server(("127.0.0.1", 0)) as server:
            load = Load("login", server.getsockname()[1], proof=proof)
            entrant = Entrant(load, tally, "Ia", None, lambda connection: None)
            entrant.token = token
            entrant.ask(1, 0.0)
            theirs, _ = server.accept()
            with theirs:
                said = theirs.recv(1000)
                for answer in answers:
                    entrant.received(answer)
        entrant.socket.close()
        return said, entrant, tally

    def test_password(self) -> None:
        """A login by password counts once it is acknowledged."""
        said, entrant, tally = self.entered("password", self.COMPLETED)
        assert f"Identifier:Ia\r\nPassword:{PASSWORD}\r\n".encode() in said
        assert (tally.done, tally.errors, entrant.open()) == (1, 0, False)

    def test_token(self) -> None:
        """A login by token brings the token of the next."""
        said, entrant, tally = self.entered("", self.COMPLETED, token=b"t1")
        assert b"Identifier:Ia\r\nToken:t1\r\n" in said
        assert (entrant.token, tally.done) == (b"t2", 1)

    def test_refused(self) -> None:
        """A server that has too much to do refuses; any other refusal is an error."""
        late = b"NOTIFY\r\nService Unavailable.\r\nTransaction:1\r\nCode:503\r\n\r\n"
        _, _, tally = self.entered("password", late)
        assert (tally.done, tally.refused, tally.errors) == (0, 1, 0)
        wrong = b"NOTIFY\r\nRegistration Failed.\r\nTransaction:1\r\nCode:401\r\n\r\n"
        _, _, tally = self.entered("password", wrong)
        assert (tally.done, tally.refused, tally.errors) == (0, 0, 1)


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
        ("values", "verdict"),
        [([1.0, 2.0, 9.0], "goal"), ([2.5, 3.0, 3.5], "must"), ([3.1], "NO"), ([], "")],
    )
    def test_met(self, values: list[float], verdict: str) -> None:
        """The median is compared with the goal, and then with what must be."""
        assert met(Row("call", goal=2.0, must=3.0, values=values)) == verdict

    def test_without_goal(self) -> None:
        """Where nothing is asked, nothing is said."""
        assert met(Row("call", values=[1.0])) == ""

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
