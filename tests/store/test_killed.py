"""Kill -9 at random moments under load: nothing acknowledged is lost, nothing is held by half.

Run as a program this forks off a writer for each line on standard input, the path of a store: so it
is there at once. It commits under load until it is killed. Standard output gets ``began PID``, the
number of each commit that is acknowledged, and ``ended PID``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import pytest
from twisted.internet.defer import Deferred

from broker.store.sqlite import SqliteStore
from tests.store.contract import EVER, TOLD, TOLD_MOST, commit_of, commits_in
from tests.store.waiting import Pump, Stores
from tests.support.processes import TETHER

pytestmark = pytest.mark.integration

#: How often the writer is killed; more often shows more.
KILLS: Final = int(os.environ.get("BROKER_KILLS", "30"))


def killed_after(writers: subprocess.Popen[str], path: Path, count: int) -> int:
    """Have one write, and kill it when it has acknowledged so many commits.

    :return: the last commit that it acknowledged; 0 if none
    """
    assert writers.stdin is not None
    assert writers.stdout is not None
    writers.stdin.write(f"{path}\n")
    writers.stdin.flush()
    pid, acknowledged = 0, [0]
    for line in writers.stdout:
        word, _, rest = line.strip().partition(" ")
        if word == "began":
            pid = int(rest)
        elif word == "ended":
            return acknowledged[-1]
        else:
            acknowledged.append(int(word))
        if pid and len(acknowledged) > count:
            os.kill(pid, signal.SIGKILL)
            pid = 0  # once it is buried its number may be another's
    raise AssertionError("the writers are gone")


@pytest.fixture
def writers() -> Iterator[subprocess.Popen[str]]:
    """The process that forks writers."""
    with subprocess.Popen(
        [*TETHER, sys.executable, "-m", __spec__.name],
        cwd=Path(__file__).resolve().parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


def test_killed(writers: subprocess.Popen[str], stores: Stores) -> None:
    """Every acknowledged change, of whatever kind, is there, in whole commits in order (I8, I9).

    The epoch stays, since nothing is lost: no terminal has to be told anything.
    """
    moments = Random(1)
    store, state = stores.open()
    stores.stop(store)
    before = 0
    for kill in range(KILLS):
        acknowledged = killed_after(writers, stores.folder / "broker.db", moments.randrange(300))
        epoch, held = stores.commits()
        assert held >= max(acknowledged, before), kill
        assert epoch == state.epoch, kill
        before = held
    assert before > 10 * KILLS


def say(text: object) -> None:
    """Write a line at once, in one piece."""
    os.write(1, f"{text}\n".encode())


def commit_for_ever(path: str) -> None:
    """Commit waves of numbered commits, and acknowledge each."""
    pump = Pump()
    store = SqliteStore(path, pump, os.urandom)
    state = pump.result(store.load())
    number = commits_in(state, pump.result(store.disclosures(TOLD, EVER, TOLD_MOST)))
    sizes = Random(number)
    waiting: deque[Deferred[None]] = deque()
    while True:
        for _ in range(sizes.choice((1, 5, 60))):
            number += 1
            waiting.append(store.commit(commit_of(number)))
            waiting[-1].addCallback(partial(lambda number, _: say(number), number))
        while len(waiting) > 150:
            pump.result(waiting.popleft())


def main() -> None:
    """Fork a writer for each line."""
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            commit_for_ever(line.rstrip("\n"))
        say(f"began {pid}")
        os.waitpid(pid, 0)
        say(f"ended {pid}")


if __name__ == "__main__":
    main()
