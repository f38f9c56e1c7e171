"""A process that commits under load, and says so on standard output, until it is killed.

For each line on standard input, the path of a store, one is forked off: so it is there at once.
Standard output gets ``began PID``, the number of each commit that is acknowledged, and
``ended PID``.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from functools import partial
from random import Random

from twisted.internet.defer import Deferred

from broker.store.sqlite import SqliteStore
from tests.store.contract import EVER
from tests.store.numbered import TOLD, TOLD_MOST, commit_of, commits_in
from tests.store.waiting import Pump


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
