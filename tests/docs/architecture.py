"""Writes the generated parts of docs/architecture.md: ``python -m tests.docs.architecture``.

These are the map of the rooms, made of the packages' docstrings, and the state tables. Each stands
between ``<!-- generated: NAME -->`` and ``<!-- end -->``; the rest is written by hand.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

import broker
from broker.states import StateTable

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs" / "architecture.md"
#: Characters in a line of the map.
WIDTH: Final = 120
#: The rooms in the direction of their imports; one that is missing here comes last.
ORDER: Final = (
    "messages",
    "tables",
    "net",
    "store",
    "mediator",
    "resolver",
    "terminal",
    "nat",
    "ca",
    "service",
    "cli",
)
_GENERATED: Final = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- end -->\n)", re.S)


def rooms() -> Iterator[str]:
    """The map: each package with the sentence of its docstring, and its modules below it."""
    yield "```"
    yield from _room(ROOT / "broker", 0)
    plugins = ROOT / "twisted" / "plugins" / "broker_plugins.py"
    yield f"{plugins.relative_to(ROOT)}  {_sentence(plugins)}"
    yield "```"


def _room(folder: Path, depth: int) -> Iterator[str]:
    indent = "  " * depth
    sentence = _sentence(folder / "__init__.py") if depth else ""
    yield f"{indent}{folder.name}/  {sentence}".rstrip()
    files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
    if depth == 0:  # these are rooms of their own
        for path in files:
            yield f"  {path.name}  {_sentence(path)}"
    elif files:
        modules = ", ".join(path.stem for path in files)
        yield textwrap.fill(
            modules, WIDTH, initial_indent=indent + "  ", subsequent_indent=indent + "  "
        )
    for below in sorted((path.parent for path in folder.glob("*/__init__.py")), key=_place):
        yield from _room(below, depth + 1)


def _place(folder: Path) -> tuple[int, str]:
    known = folder.name in ORDER
    return ORDER.index(folder.name) if known else len(ORDER), folder.name


def _sentence(path: Path) -> str:
    """The first paragraph of a file's docstring, in one line."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split()).replace("``", "").rstrip(".")


def tables() -> list[tuple[ModuleType, StateTable]]:
    """Every state table of broker, with the module that makes it."""
    found: dict[int, tuple[ModuleType, StateTable]] = {}
    for name in sorted(each.name for each in pkgutil.walk_packages(broker.__path__, "broker.")):
        module = importlib.import_module(name)
        if "StateTable" in vars(module):  # elsewhere it is imported
            for value in vars(module).values():
                if isinstance(value, StateTable):
                    found.setdefault(id(value), (module, value))
    return list(found.values())


def states() -> Iterator[str]:
    """Each state table: a row for a state, with its events and where they lead."""
    for module, table in tables():
        path = Path(str(module.__file__)).relative_to(ROOT)
        yield from (
            f"**{table.name}** (`{path}`)",
            "",
            "| state | event → next state |",
            "|---|---|",
        )
        for state in table:
            start = " (initial)" if state == table.initial else ""
            leads = ", ".join(f"{event} → {following}" for event, following in table[state].items())
            yield f"| {state}{start} | {leads or '–'} |"
        yield ""


def updated(page: str) -> str:
    """A page with its generated parts as the code has them now."""
    parts = {"rooms": rooms, "states": states}

    def part(found: re.Match[str]) -> str:
        lines = "\n".join(parts[found[2]]()).strip()
        return f"{found[1]}\n{lines}\n\n{found[3]}"

    return _GENERATED.sub(part, page)


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text("utf-8")), "utf-8")
