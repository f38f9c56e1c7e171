"""A conversation that is not what happens is found out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conversations.script import NoScript, parse, read
from tests.conversations.stage import Differs, play

REGISTERED = """\
-- Ia connects
Ia> REGISTER
Ia> Identifier:Ia
Ia> Accept:Create Ib
Ia>
Ia< NOTIFY
Ia< Registration Completed.
Ia<
"""
GRANTED = """\
-- twistd broker --no-status
-- Ia connects
-- Ib connects
Ib> REGISTER
Ib> Identifier:Ib
Ib> Accept:Create Ia
Ib> Address:127.0.0.1
Ib>
Ib< NOTIFY
Ib< Registration Completed.
Ib<
Ia> QUERY
Ia> Identifier:Ia
Ia> Callee:Ib
Ia>
Ia< NOTIFY
Ia< Request Accepted.
Ia<
Ia< NOTIFY
Ia< Callee Address:127.0.0.1
Ia< Password:{password}
Ia< Encrypt Key:{key}
Ia< Callee Port:1203
Ia< Callee:Ib
Ia< Session:{session}
Ia< Expires:3600
Ia< Reply Password:{password back}
Ia<
Ib< NOTIFY
Ib< Caller ID:Ia
Ib< Password:{password}
Ib< Encrypt Key:{key}
Ib< Session:{session}
Ib< Expires:3600
Ib< Reply Password:{password back}
Ib<
"""


class StageTests:
    """What a difference is."""

    def test_same(self, tmp_path: Path) -> None:
        """What happens as it is written is no difference."""
        play(REGISTERED, tmp_path)
        play(GRANTED, tmp_path)

    @pytest.mark.parametrize(
        ("written", "instead"),
        [
            ("Ia< Registration Completed.", "Ia< Registration Failed."),
            ("Ia< Registration Completed.", ""),
            ("Ia< Registration Completed.", "Ia< Registration Completed.\nIa< Code:200"),
            ("Ia< Registration Completed.", "Ia< Registration Completed. "),
            ("Ia> Accept:Create Ib", "Ia> Accept:Ib"),
            ("Ia<\n", ""),
            ("Ia<\n", "Ia<\nIa<\n"),
            ("Ia< NOTIFY\nIa< Registration Completed.\nIa<\n", "-- 1 s pass"),
            ("Ia<\n", "Ia<\n-- Ia is closed"),
            ("Ia<\n", "Ia<\n-- 127.0.0.1:1203 is dialled; nobody answers"),
        ],
    )
    def test_different(self, tmp_path: Path, written: str, instead: str) -> None:
        """Another line, one that is missing and one too many are differences."""
        assert written in REGISTERED
        with pytest.raises(Differs):
            play(REGISTERED.replace(written, instead), tmp_path)

    @pytest.mark.parametrize(
        ("written", "instead"),
        [
            ("{password back}", "{password}"),
            ("Ib< Session:{session}", "Ib< Session:{session 2}"),
            ("Ib< Encrypt Key:{key}", "Ib< Encrypt Key:{password}"),
            ("Ia< Session:{session}", "Ia< Session:{password 3}"),
            ("Ia> Callee:Ib", "Ia> Callee:{token}"),
        ],
    )
    def test_placeholders(self, tmp_path: Path, written: str, instead: str) -> None:
        """A placeholder keeps its value and its shape, and two of them never have the same."""
        assert written in GRANTED
        with pytest.raises(Differs):
            play(GRANTED.replace(written, instead), tmp_path)

    def test_unknown(self, tmp_path: Path) -> None:
        """What nobody understands is not passed over."""
        with pytest.raises(Differs, match="nobody knows how this happens"):
            play("-- the moon rises", tmp_path)
        with pytest.raises(NoScript, match="line 2"):
            parse(["Ia> QUERY", "Ia: QUERY"])

    def test_blocks(self, tmp_path: Path) -> None:
        """Only blocks that say that they are conversations are taken for some."""
        page = tmp_path / "page.md"
        page.write_text(
            "# One\n```conversation\nIa> A\n```\n## Two\n```\nIa> B\n```\n"
            "```conversation\n# why\n\nIa> C\nIa> D\n\nIa> E\n```\n",
            "utf-8",
        )
        first, second = read(page)
        assert (first.title, first.line) == ("One", 2)
        assert [step.lines for step in second.steps] == [["C", "D"], ["E"]]
        assert [step.line for step in second.steps] == [12, 15]
