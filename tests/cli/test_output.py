"""What the commands print for people."""

from __future__ import annotations

import io

import pytest
from twisted.internet.task import Clock

from broker.cli.output import Progress, limits_in_words
from tests.cli.shell import Tty


class LimitsTests:
    """The limits of permits in words."""

    @pytest.mark.parametrize(
        ("entry", "words"),
        [
            ("Ia", "Ia"),
            ("Ia;uses=1", "Ia (1 call left)"),
            ("@family;uses=12", "@family (12 calls left)"),
            ("Ia;expires=1", "Ia (1 s left)"),
            ("Ia;expires=119", "Ia (119 s left)"),
            ("Ia;expires=3541;uses=1", "Ia (59 min left, 1 call left)"),
            ("Ia;expires=7200", "Ia (2 h left)"),
            ("Ia;expires=172800", "Ia (2 days left)"),
        ],
    )
    def test_words(self, entry: str, words: str) -> None:
        """As a person says it, never more than there is."""
        assert limits_in_words(entry) == words


class ProgressTests:
    """The bar."""

    def draw(self, stream: io.StringIO, total: int, *steps: tuple[float, int]) -> str:
        """What is drawn after these steps, each a time and the bytes sent by then."""
        clock = Clock()
        progress = Progress(stream, total, clock)
        for clock.rightNow, octets in steps:
            progress.at(octets)
        progress.end()
        return stream.getvalue()

    def test_grows(self) -> None:
        """It grows on its line, which it leaves at the end."""
        drawn = self.draw(Tty(), 2_000_000, (1.0, 1_000_000), (2.0, 2_000_000))
        half, full = "#" * 15 + " " * 15, "#" * 30
        assert drawn == f"\r[{half}]  50% of 2.0 MB\r[{full}] 100% of 2.0 MB\n"

    def test_not_too_often(self) -> None:
        """Ten times a second is enough, but the end is always drawn."""
        drawn = self.draw(Tty(), 100, (1.0, 1), (1.05, 2), (1.06, 3), (1.07, 100))
        assert drawn.count("\r") == 2
        assert "100%" in drawn

    def test_none_in_a_pipe(self) -> None:
        """What is no terminal gets nothing."""
        assert self.draw(io.StringIO(), 100, (1.0, 50), (2.0, 100)) == ""

    def test_nothing_to_send(self) -> None:
        """An empty file, or a device, has no part of a whole."""
        assert self.draw(Tty(), 0, (1.0, 0), (2.0, 10)) == ""

    def test_grown_since(self) -> None:
        """A file that grew while it was sent is not more than whole."""
        assert "100%" in self.draw(Tty(), 100, (1.0, 150))
