"""Nothing is awaited between ``recheck`` and ``tell``, in any handler of calls (I1, I2)."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

import pytest

MEDIATOR: Final = Path(__file__).resolve().parent.parent.parent / "broker" / "mediator"

BROKEN: Final = """
async def handle(attempt):
    permitted = attempt.recheck()
    await attempt.something()
    attempt.tell(permitted, {}, None)
"""


def tells(source: str) -> list[tuple[str, bool]]:
    """Each function that tells: its name, and whether it awaits after the last ``permitted =``."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.AsyncFunctionDef):
            continue
        nodes = sorted(
            (node for node in ast.walk(function) if isinstance(node, ast.stmt | ast.expr)),
            key=lambda node: node.lineno,
        )
        for tell in nodes:
            if isinstance(tell, ast.Call) and getattr(tell.func, "attr", "") == "tell":
                assert getattr(tell.args[0], "id", "") == "permitted"
                rechecked = max(
                    node.end_lineno or 0
                    for node in nodes
                    if isinstance(node, ast.Assign)
                    and getattr(node.targets[0], "id", "") == "permitted"
                )
                awaits = [node.lineno for node in nodes if isinstance(node, ast.Await)]
                late = any(rechecked < line <= tell.lineno for line in awaits)
                found.append((function.name, late))
    return found


@pytest.mark.parametrize(
    ("module", "function"), [("call", "_mediate"), ("connect_back", "_connect")]
)
def test_a_handler(module: str, function: str) -> None:
    """What it tells is what it found in the turn in which it tells it."""
    assert tells((MEDIATOR / f"{module}.py").read_text(encoding="utf-8")) == [(function, False)]


def test_every_handler_is_looked_at() -> None:
    """No other module tells by an attempt."""
    found = {path.stem for path in MEDIATOR.glob("*.py") if ".tell(permitted" in path.read_text()}
    assert found == {"call", "connect_back"}


def test_it_would_be_found() -> None:
    """An await in between is noticed."""
    assert tells(BROKEN) == [("handle", True)]
