"""Nothing is awaited between ``recheck`` and ``tell``, in any handler of calls (I1, I2)."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

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


def test_every_handler() -> None:
    """What it tells is what it found in the turn in which it tells it; no other module tells."""
    sources = {path.stem: path.read_text(encoding="utf-8") for path in MEDIATOR.glob("*.py")}
    found = {name: tells(text) for name, text in sources.items() if ".tell(permitted" in text}
    assert found == {"call": [("_mediate", False)], "connect_back": [("_connect", False)]}


def test_it_would_be_found() -> None:
    """An await in between is noticed."""
    assert tells(BROKEN) == [("handle", True)]
