"""How often callees have been asked for their consent of late: who asks too often is not asked for.

Whoever asks can't tell that from a refusal (I17).
"""

from __future__ import annotations

from typing import Final

from broker.tables.rate_limits import REMEMBERED_MOST, Shares, ShareTable

#: Questions that one caller may cause at one callee in a minute,
A_PAIR: Final = 3
#: at all callees together,
A_CALLER: Final = 10
#: and that one callee is asked, whoever causes them.
A_CALLEE: Final = 10


class PromptTable(ShareTable):
    """The questions of the last minute, by who caused them and who was asked."""

    __slots__ = ()

    def __init__(self, most: int = REMEMBERED_MOST) -> None:
        """
        :param most: questions that are remembered
        """
        super().__init__(Shares(A_PAIR, A_CALLER, A_CALLEE), most)

    def take(self, caller: str, callee: str, now: float) -> bool:
        """Count a question, if it may be asked. What may not be asked is not counted.

        :param now: seconds by a clock that never goes back
        :return: whether it may be
        """
        return self.begin(caller, callee, now) is not None
