"""Conversations as the documents print them, read from fenced ``conversation`` blocks.

A line is one of:

- ``Ia> Callee:Ib``: what the connection named ``Ia`` sends; ``Ia>`` alone is an empty line
- ``Ia< Request Accepted.``: what is sent to it
- ``-- 5 s pass``: something that happens; which things can is told in ``stage``
- ``# why``, or nothing: a comment

Lines of one kind and connection that follow each other belong together: they are sent in one piece,
or must be received as they stand. ``Ia>*`` and ``Ia<*`` are lines of an encrypted body.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_SPOKEN: Final = re.compile(r"(?P<who>[A-Za-z][A-Za-z0-9]*)(?P<way>[<>]\*?)(?: (?P<text>.*))?")
_FENCE: Final = re.compile(r"```(?P<kind>\S*)\s*")


@dataclass(slots=True)
class Step:
    """Lines that belong together.

    :ivar line: where the first of them stands in its file
    :ivar way: ``>`` or ``<``, ``>*`` or ``<*`` for a body, ``--`` for what happens
    :ivar who: the connection; empty for what happens
    :ivar lines: the texts of the lines
    """

    line: int
    way: str
    who: str
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Script:
    """One conversation.

    :ivar title: the heading it stands under
    :ivar line: where it begins in its file
    """

    title: str
    line: int
    steps: tuple[Step, ...]


class NoScript(ValueError):
    """A block holds a line that is none of a conversation's."""


def read(path: Path) -> Iterator[Script]:
    """The conversations of a file, in order.

    :raises NoScript: a block can't be understood
    """
    title = ""
    kind: str | None = None
    begun = 0
    block: list[str] = []
    for number, line in enumerate(path.read_text("utf-8").split("\n"), 1):
        fence = _FENCE.fullmatch(line)
        if kind is None:
            if line.startswith("#"):
                title = line.lstrip("#").strip()
            if fence is not None:
                kind, begun, block = fence["kind"], number, []
        elif fence is not None:
            if kind == "conversation":
                yield Script(title, begun, tuple(parse(block, begun + 1)))
            kind = None
        else:
            block.append(line)


def parse(lines: list[str], first: int = 1) -> list[Step]:
    """The steps of one block.

    :param first: the number of its first line
    :raises NoScript: a line is none of a conversation's
    """
    steps: list[Step] = []
    apart = True  # from the line above
    for number, line in enumerate(lines, first):
        if not line.strip() or line.startswith("#"):
            apart = True
            continue
        if line.startswith("-- "):
            steps.append(Step(number, "--", "", [line[3:].strip()]))
            continue
        spoken = _SPOKEN.fullmatch(line)
        if spoken is None:
            raise NoScript(f"line {number}: {line!r}")
        last = steps[-1] if steps and not apart else None
        if last is None or (last.way, last.who) != (spoken["way"], spoken["who"]):
            steps.append(Step(number, spoken["way"], spoken["who"]))
        steps[-1].lines.append(spoken["text"] or "")
        apart = False
    return steps
