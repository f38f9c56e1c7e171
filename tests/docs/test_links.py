"""What the documents mention exists, and what must be proven is cited by a test that proves it."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import broker
from broker import interfaces

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("benchmarks/*.md")),
]

_LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE: Final = re.compile(r"`([^`\n]+)`")
_BLOCK: Final = re.compile(r"^```.*?^```", re.M | re.S)
_PATH: Final = re.compile(
    r"(?<![\w/])(?:bin|docs|etc|examples|tests|benchmarks|broker|twisted|messages|tables|net|store"
    r"|mediator|resolver|terminal|nat|service|cli)/[\w./-]+"
)
_DOTTED: Final = re.compile(r"\bbroker(?:\.[a-z_]+)+(?:\.[A-Z]\w*)?")
_MEMBER: Final = re.compile(r"([A-Z]\w+)\.(\w+)")
_FENCED_NAMES: Final = re.compile(r"\bfrom (broker[\w.]*) import ([\w, ]+)")

#: What a handshake's prologue begins with; it looks like a path and is none.
PROLOGUE: Final = "broker/1"

#: What this version must prove (A: permitted mediation, I: what must never happen).
REQUIRED: Final = (
    *(f"A{n}" for n in (1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 20, 22, 24, 25)),
    *(f"I{n}" for n in (1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 18, 19, 21, 22, 24, 25, 26)),
)
_CITED: Final = re.compile(r"\b([A-EI])(\d{1,2})(?:–\1?(\d{1,2}))?\b")


def name(page: Path) -> str:
    """What a page is called in a report."""
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as a forge makes them."""
    made = set()
    for line in _BLOCK.sub("", page.read_text("utf-8")).splitlines():
        if line.startswith("#"):
            heading = line.lstrip("#").strip().lower()
            made.add(re.sub(r"[^\w\- ]", "", heading).replace(" ", "-"))
    return made


def modules() -> Iterator[str]:
    """All modules of broker."""
    for found in pkgutil.walk_packages(broker.__path__, "broker."):
        yield found.name


def classes() -> dict[str, list[Any]]:
    """All classes of broker, by their names; a few names are those of two."""
    found: dict[str, list[Any]] = {}
    for module in map(importlib.import_module, modules()):
        for known, value in vars(module).items():
            if inspect.isclass(value) and value.__module__ == module.__name__:
                found.setdefault(known, []).append(value)
    return found


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a file."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, documented):
            yield ast.get_docstring(node) or ""


def cited(text: str) -> Iterator[str]:
    """The requirements that a text cites: ``A9``, ``I1, I2``, ``A1–A5``."""
    for letter, first, last in _CITED.findall(text):
        for number in range(int(first), int(last or first) + 1):
            yield f"{letter}{number}"


class LinksTests:
    """The pages of the project."""

    @pytest.mark.parametrize("page", PAGES, ids=name)
    def test_links(self, page: Path) -> None:
        """Every link leads to a file that is there, and to a heading that stands in it."""
        assert {"README.md", "CHANGELOG.md", "docs/protocol.md"} <= set(map(name, PAGES))
        for link in _LINK.findall(page.read_text("utf-8")):
            target, _, anchor = link.partition("#")
            other = (page.parent / target).resolve() if target else page
            assert other.exists(), link
            if anchor:
                assert anchor in anchors(other), link

    @pytest.mark.parametrize("page", PAGES, ids=name)
    def test_paths(self, page: Path) -> None:
        """Every path that is mentioned is one of the checkout, or of broker/."""
        for code in _CODE.findall(_BLOCK.sub("", page.read_text("utf-8"))):
            for path in _PATH.findall(code):
                if path != PROLOGUE:
                    assert (ROOT / path).exists() or (ROOT / "broker" / path).exists(), path

    @pytest.mark.parametrize("page", PAGES, ids=name)
    def test_names(self, page: Path) -> None:
        """Every module, class and method that is mentioned exists under that name."""
        text = page.read_text("utf-8")
        for dotted in _DOTTED.findall(text):
            head, _, last = dotted.rpartition(".")
            if last[0].isupper():
                assert hasattr(importlib.import_module(head), last), dotted
            elif last not in {"toml", "pid", "db", "admin"}:  # names of files, not of modules
                importlib.import_module(dotted)
        for module, imported in _FENCED_NAMES.findall(text):
            for each in imported.split(","):
                assert hasattr(importlib.import_module(module), each.strip()), (module, each)
        known = classes()
        for code in _CODE.findall(_BLOCK.sub("", text)):
            for owner, member in _MEMBER.findall(code):
                if owner in known:
                    assert any(member in dir(one) for one in known[owner]), code

    def test_when_a_flow_is_drawn_then_its_functions_exist(self) -> None:
        """Each method in the pictures of the architecture's ways is one of a class of broker."""
        text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
        ways = text[text.index("## The way of a message") : text.index("## Where to add things")]
        drawn = _MEMBER.findall("".join(_BLOCK.findall(ways)))
        known = classes()
        assert len(set(drawn)) > 10
        for owner, member in drawn:
            seam = getattr(interfaces, owner, None)
            members = [dir(one) for one in known.get(owner, ())] or [list(seam or ())]
            assert any(member in names for names in members), (owner, member)


class RequirementsTests:
    """What the tests say that they prove."""

    def test_cited(self) -> None:
        """Every requirement and invariant of this version is cited by a test's docstring."""
        proven: set[str] = set()
        for path in sorted((ROOT / "tests").rglob("test_*.py")):
            for docstring in docstrings(path):
                proven.update(cited(docstring))
        assert [one for one in REQUIRED if one not in proven] == []

    def test_ranges(self) -> None:
        """A range stands for all that lie in it."""
        assert list(cited("as A1–A3, I6 and S1203 (I11–13) promise")) == [
            *("A1", "A2", "A3", "I6", "I11", "I12", "I13")
        ]
