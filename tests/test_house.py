"""The house stays one that people can read: its figures stay within their limits.

To see what is over a limit: ``python -m tests.support.house``.
"""

from __future__ import annotations

import ast
from typing import Final

import pytest

from tests.support import house
from tests.support.house import Found, Module

SOURCES: Final = house.modules()

#: Functions that are tables, written as a function: rows for a parser, and nothing else.
TABLES: Final = frozenset[str]()
#: Callables that a constructor takes and that are called later, of a hundred classes.
CALLBACKS: Final = 8.0
#: Odd words in a thousand.
ODD_WORDS: Final = 2.0


class FiguresTests:
    """What is counted."""

    def test_constructors(self) -> None:
        """What a constructor needs fits into seven parameters, or into a settings object."""
        assert house.wide_constructors(SOURCES) == []

    def test_functions(self) -> None:
        """A function fits on a screen."""
        long = {f"{found.where}: {found.what}" for found in house.long_functions(SOURCES)}
        assert {found for found in long if found.split(":")[0] not in TABLES} == set()

    def test_callbacks(self) -> None:
        """Interfaces one can look up, in place of loose callables."""
        found = house.callbacks(SOURCES)
        classes = sum(1 for module in SOURCES for _ in module.classes)
        assert 100 * len(found) / classes <= CALLBACKS, found

    def test_names(self) -> None:
        """A class is found by its name."""
        assert house.twice_named(SOURCES) == []

    def test_attributes(self) -> None:
        """A class with much state says why."""
        assert house.crowded_classes(SOURCES) == []

    def test_identifiers(self) -> None:
        """Who has logged in has an identifier; the type says so."""
        assert house.unsure_identifiers(SOURCES) == []

    def test_words_of_code(self) -> None:
        """Comments and docstrings are plain English."""
        texts = [(module.where, house.prose_of(module)) for module in SOURCES]
        found, rate = house.odd_words(texts)
        assert rate <= ODD_WORDS, found

    def test_words_of_documents(self) -> None:
        """So are the documents, all together."""
        found, rate = house.odd_words(house.pages())
        assert rate <= ODD_WORDS, found

    @pytest.mark.parametrize(
        ("page", "most"),
        [("README.md", 150), ("CONTRIBUTING.md", 80), ("docs/protocol.md", 600)],
    )
    def test_lengths(self, page: str, most: int) -> None:
        """What a newcomer reads first is short."""
        assert len((house.ROOT / page).read_text("utf-8").splitlines()) <= most


def module(source: str) -> list[Module]:
    """A module of this source."""
    return [Module("m.py", source, ast.parse(source))]


class CounterTests:
    """The counting itself: it finds what is there."""

    def test_constructor(self) -> None:
        """Seven are right, eight are one too many."""
        source = "class {0}:\n    def __init__(self, {1}): pass\n"
        seven = ", ".join("abcdefg")
        assert house.wide_constructors(module(source.format("A", seven))) == []
        assert house.wide_constructors(module(source.format("A", f"{seven}, *, h=1"))) == [
            Found("m.py", "A takes 8 parameters")
        ]

    def test_function(self) -> None:
        """A docstring is not counted."""
        body = "    x = 1\n" * 39
        assert house.long_functions(module(f'def f():\n    """\n    Long.\n    """\n{body}')) == []
        assert house.long_functions(module(f"async def f():\n    x = 1\n{body}")) == [
            Found("m.py", "f has 41 lines")
        ]

    def test_callback(self) -> None:
        """Only what is kept and called, whatever the name it is kept under."""
        source = """
class A:
    def __init__(self, clock, done, other):
        self._clock = clock
        self._over, self.n = done, 1
        other()
    def f(self):
        self._clock.seconds()
        self._over(1)
"""
        assert house.callbacks(module(source)) == [
            Found("m.py", "A calls what it was given as done")
        ]

    def test_names(self) -> None:
        """Also one class within another counts."""
        source = "class A:\n    class B: pass\nclass B: pass\n"
        assert (
            house.twice_named(module(source)) == [Found("m.py", "B is the name of 2 classes")] * 2
        )

    def test_attributes(self) -> None:
        """A reason lets more pass, as long as it has the number right."""
        sets = "".join(f"        self.a{n} = {n}\n" for n in range(15))
        source = f"class A:\n{{}}    def __init__(self):\n{sets}"
        (found,) = house.crowded_classes(module(source.format("")))
        assert found.what == "A has 15 attributes, and no reason"
        assert house.crowded_classes(module(source.format("    # 15 attributes: because.\n"))) == []
        (found,) = house.crowded_classes(module(source.format("    # 14 attributes: because.\n")))
        assert found.what == "A has 15 attributes; its reason says 14"

    def test_identifier(self) -> None:
        """The doubt is found."""
        (found,) = house.unsure_identifiers(module('x = peer.identifier or ""\n'))
        assert found.what == 'x = peer.identifier or ""'

    def test_words(self) -> None:
        """Odd words count, whatever their case; parts of words do not."""
        found, rate = house.odd_words([("m.py", "Nobody, whoever; furthermore whomsoever plain")])
        assert [one.what for one in found] == ["nobody", "whoever"]
        assert rate == 400.0

    def test_prose(self) -> None:
        """Docstrings and comments, and not the code."""
        (one,) = module('def f():\n    """Says."""\n    nobody = 1  # why\n')
        assert house.prose_of(one) == "Says.\nwhy"
