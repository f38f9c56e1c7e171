"""The bench runs to its end, so that it does not rot; what it measures is not looked at here."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.echo import END, REPLY, REQUEST
from benchmarks.load import Caller, Tally, percentile
from benchmarks.plan import Row
from benchmarks.report import met

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--callers=4", "--depths=2", "--repeats=1", "--calls=60", "--terminals=40")


@pytest.mark.integration
class BenchTests:
    """The whole of it, as small as it goes."""

    def test_tiny_run(self, tmp_path: Path) -> None:
        """A run over real processes completes and gives each measure, as a table and as JSON."""
        path = tmp_path / "results"
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", *TINY, "--json", str(path)],
            cwd=ROOT,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        rows = json.loads(path.read_text(encoding="utf-8"))
        titles = [row["title"] for row in rows]
        for expected in (
            "REF: the bare echo",
            "call, 4 × 2",
            "call with status, 4 × 2",
            "call with status, resolver apart, 4 × 2",
            "adds: call with status, resolver apart, 4 × 2",
            "call with status, at half load, even arrivals",
            "memory of an idle terminal, 40 of them",
        ):
            assert expected in titles
            assert expected in done.stdout
        for row in rows:
            assert all(result["calls"] >= 60 for result in row["results"])
            assert all(result["errors"] == 0 for result in row["results"])

    def test_profile(self) -> None:
        """The profile names the functions of a call with the status query."""
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", "--profile", "--seconds", "0.3"],
            cwd=ROOT,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
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

    def test_percentile(self) -> None:
        """Of 200 values, two are above the p99."""
        values = [float(value) for value in range(1, 201)]
        assert percentile(values, 0.99) == 198.0
        assert percentile(values, 0.5) == 100.0
        assert percentile([7.0], 0.99) == 7.0
