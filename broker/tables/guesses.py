"""Call passwords that callees have refused of late: who is refused too often is not asked for.

Whoever guesses can't tell that from one more refusal (I6, I17).
"""

from __future__ import annotations

from typing import Final

from broker.tables.rate_limits import REMEMBERED_MOST, Shares, ShareTable

#: Guesses of one caller at one callee in a minute,
A_PAIR: Final = 5
#: at all callees together,
A_CALLER: Final = 20
#: and of all callers at one callee. One caller alone has only a sixth of them, so that it keeps
#: nobody else out.
A_CALLEE: Final = 30


class GuessTable(ShareTable):
    """The guesses of the last minute that were not right, by who guessed and at whom.

    Each is counted before it is looked at (``begin``).
    """

    __slots__ = ()

    def __init__(self, most: int = REMEMBERED_MOST) -> None:
        """
        :param most: guesses that are remembered
        """
        super().__init__(Shares(A_PAIR, A_CALLER, A_CALLEE), most)

    def right(self, guess: int) -> None:
        """It was none: its password is right, and it does not count."""
        self.spare(guess)
