"""How often a UDP keepalive is sent: as seldom as the router is seen to keep a mapping."""

from __future__ import annotations

from typing import Final

#: The shortest interval in seconds, and the longest unless the terminal is configured otherwise.
SHORTEST: Final = 1.0
LONGEST: Final = 300.0
#: The factor by which the interval grows while no mapping has been lost.
GROWTH: Final = 1.5
#: The search ends when it is this near, as a part of it, to a silence that was too long.
PRECISION: Final = 0.25
#: The part of the interval that must have lasted: a silence is never measured quite whole.
MEASURED: Final = 0.95
#: Answers after which a silence that was too long is tried again: the router may have changed.
RETRY_AFTER: Final = 100


class KeepaliveInterval:
    """The interval between keepalives, searched between what lasted and what was too long.

    It begins with the server's suggestion. A silence that the router's mapping has outlived makes
    it longer: by half; and, once a longer one has been too long, to the middle between the two,
    until they are near each other. Then it stays at the one that lasted. A silence that was too
    long makes it the longest that lasted, or half of that silence. Both are remembered; that a
    silence was too long, for ``RETRY_AFTER`` answers.

    :ivar seconds: the interval
    """

    def __init__(self, longest: float = LONGEST) -> None:
        """
        :param longest: seconds that the interval never exceeds, whatever the server suggests
        """
        self.seconds = longest
        self._longest = longest
        self._suggested = longest
        self._lasted = 0.0
        self._too_long: float | None = None
        self._answers = 0

    def suggest(self, seconds: float) -> None:
        """Begin with the server's suggestion, unless more is known from measurements."""
        suggested = min(seconds, self._longest)
        if suggested != self._suggested:
            self._suggested = suggested
            if self._lasted == 0 and self._too_long is None:
                self.seconds = suggested

    def answered(self) -> None:
        """A keepalive was answered."""
        self._answers += 1
        if self._answers >= RETRY_AFTER:
            self._answers = 0
            if self._too_long is not None:
                self._too_long = None
                self.seconds = max(self._suggested, self._lasted)

    def lasted(self, silence: float) -> None:
        """A mapping was seen to outlive this many seconds of silence."""
        self._lasted = max(self._lasted, silence)
        if self._too_long is not None and silence >= self._too_long:
            self._too_long = None
        if self._lasted >= self.seconds * MEASURED:
            self.seconds = self._longer()

    def lost(self, silence: float) -> None:
        """After this many seconds of silence the router had made another mapping."""
        self._answers = 0
        if self._too_long is None or silence < self._too_long:
            self._too_long = silence
        if self._lasted >= silence:  # it lasted before: the router is another, or has restarted
            self._lasted = 0.0
        self.seconds = min(self._longest, max(SHORTEST, self._lasted or silence / 2))

    def _longer(self) -> float:
        if self._too_long is None:
            return min(self._longest, self._lasted * GROWTH)
        if self._too_long - self._lasted <= self._too_long * PRECISION:
            return self._lasted
        return min(self._longest, (self._lasted + self._too_long) / 2)
