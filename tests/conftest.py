"""What every test is given."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

_numbers = itertools.count()


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
