"""What every test is given."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

_numbers = itertools.count()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how to run again what has failed, alone and in one process."""
    stats = terminalreporter.stats
    failed = {report.nodeid for kind in ("failed", "error") for report in stats.get(kind, ())}
    if failed:
        terminalreporter.section("to run a failed test again")
        for nodeid in sorted(failed):
            terminalreporter.line(f"bin/test -n 0 '{nodeid}'")


@pytest.fixture(autouse=True)
def no_passwords_of_ours(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A configuration folder with nothing in it, for tests and for the processes they start.

    :return: the folder; what whoever runs the tests keeps in his own goes nowhere
    """
    folder = tmp_path_factory.getbasetemp() / f"configuration-{next(_numbers)}"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    return folder
