"""How often a terminal must be heard of: as seldom as its router's memory can be seen to last."""

from __future__ import annotations

from typing import Final

#: Seconds between two keepalives, at the least, and at the most where nobody says otherwise.
LEAST: Final = 1.0
MOST: Final = 300.0
#: By what the interval grows as long as no mapping has been lost.
GROWTH: Final = 1.5
#: How near, as a part of it, the search comes to a silence that was too long.
NEARNESS: Final = 0.25
#: What of the interval must have lasted, since it is never measured quite whole.
NEARLY: Final = 0.95
#: Answers after which a silence that was too long may be tried again.
FORGIVEN: Final = 100


class KeepaliveInterval:
    """The interval between keepalives, searched between what lasted and what was too long.

    It begins with the server's suggestion. A silence that a mapping is seen to have outlived makes
    it longer: by half, and, once another has been too long, to the middle between the two, until
    they are near each other; then it stays at the one that lasted. A silence that was too long
    makes it the longest that lasted, or half of what it was. Both are remembered; that something
    was too long, for ``FORGIVEN`` answers.

    :ivar seconds: the interval
    """

    def __init__(self, most: float = MOST) -> None:
        """
        :param most: the longest interval, which goes before what the server suggests
        """
        self.seconds = most
        self._most = most
        self._suggested = most
        self._lasted = 0.0
        self._too_long: float | None = None
        self._answers = 0

    def suggest(self, seconds: float) -> None:
        """The server says where to begin; what was found out goes before that."""
        suggested = min(seconds, self._most)
        if suggested != self._suggested:
            self._suggested = suggested
            if self._lasted == 0 and self._too_long is None:
                self.seconds = suggested

    def answered(self) -> None:
        """A keepalive was answered."""
        self._answers += 1
        if self._answers >= FORGIVEN:
            self._answers = 0
            if self._too_long is not None:
                self._too_long = None
                self.seconds = max(self._suggested, self._lasted)

    def lasted(self, silence: float) -> None:
        """A mapping was seen to outlive so many seconds of silence."""
        self._lasted = max(self._lasted, silence)
        if self._too_long is not None and silence >= self._too_long:
            self._too_long = None
        if self._lasted >= self.seconds * NEARLY:
            self.seconds = self._longer()

    def lost(self, silence: float) -> None:
        """After so many seconds of silence a mapping was found to be another."""
        self._answers = 0
        if self._too_long is None or silence < self._too_long:
            self._too_long = silence
        if self._lasted >= silence:  # it had lasted before: the router is another, or began anew
            self._lasted = 0.0
        self.seconds = min(self._most, max(LEAST, self._lasted or silence / 2))

    def _longer(self) -> float:
        if self._too_long is None:
            return min(self._most, self._lasted * GROWTH)
        if self._too_long - self._lasted <= self._too_long * NEARNESS:
            return self._lasted
        return min(self._most, (self._lasted + self._too_long) / 2)
