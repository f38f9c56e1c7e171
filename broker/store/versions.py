"""Versions of the schema: a script that makes the newest, and a step from each version to the next.

A folder has ``v3.sql``, which makes version 3 in an empty database, and ``upgrade-2-to-3.sql`` and
so on, which convert what is stored. Scripts that made earlier versions are not needed here.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

from broker.store.connection import Connection

#: The schema of this version of the product.
SCHEMA: Final = resources.files("broker.store") / "schema"
_WHOLE: Final = re.compile(r"v([1-9][0-9]*)\.sql")


def newest(schema: Traversable) -> int:
    """Return the newest version that a folder makes."""
    return max(int(found[1]) for file in schema.iterdir() if (found := _WHOLE.fullmatch(file.name)))


def make(connection: Connection, schema: Traversable) -> None:
    """Make the newest version in an empty database, within a transaction."""
    version = newest(schema)
    _run(connection, schema / f"v{version}.sql")
    connection.execute(f"PRAGMA user_version = {version}")


def upgrade(connection: Connection, schema: Traversable, version: int) -> None:
    """Upgrade from one version to the newest, step by step, within a transaction."""
    for new in range(version + 1, newest(schema) + 1):
        _run(connection, schema / f"upgrade-{new - 1}-to-{new}.sql")
        connection.execute(f"PRAGMA user_version = {new}")


def _run(connection: Connection, script: Traversable) -> None:
    for statement in statements(script.read_text(encoding="utf-8")):
        connection.execute(statement)


def statements(script: str) -> Iterator[str]:
    """Split a script into statements, each of which ends at the end of a line.

    :raises ValueError: the last statement is incomplete
    """
    statement = ""
    for line in script.splitlines(keepends=True):
        if not statement and (not line.strip() or line.startswith("--")):
            continue
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement:
        raise ValueError(f"a statement without an end: {statement!r}")
