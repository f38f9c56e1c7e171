"""How often callees have been asked for their consent of late: who asks too often is not asked for.

Whoever asks can't tell that from a refusal (I17).
"""

from __future__ import annotations

from collections import deque
from typing import Final

#: Seconds in which no more than these are let through.
WINDOW: Final = 60.0
#: Questions that one caller may cause at one callee,
A_PAIR: Final = 3
#: at all callees together,
A_CALLER: Final = 10
#: and that one callee is asked, whoever causes them.
A_CALLEE: Final = 10
#: Questions that are remembered; beyond them nobody is asked (I15).
REMEMBERED_MOST: Final = 100_000


class PromptTable:
    """The questions of the last minute, by who caused them and who was asked."""

    __slots__ = ("_callees", "_callers", "_most", "_pairs", "_recent")

    def __init__(self, most: int = REMEMBERED_MOST) -> None:
        """
        :param most: questions that are remembered
        """
        self._most = most
        self._recent: deque[tuple[float, str, str]] = deque()
        self._pairs: dict[tuple[str, str], int] = {}
        self._callers: dict[str, int] = {}
        self._callees: dict[str, int] = {}

    def take(self, caller: str, callee: str, now: float) -> bool:
        """Count a question, if it may be asked. What may not be asked is not counted.

        :param now: seconds by a clock that never goes back
        :return: whether it may be
        """
        self._forget(now)
        pair = (caller, callee)
        if (
            self._pairs.get(pair, 0) >= A_PAIR
            or self._callers.get(caller, 0) >= A_CALLER
            or self._callees.get(callee, 0) >= A_CALLEE
            or len(self._recent) >= self._most
        ):
            return False
        self._recent.append((now, caller, callee))
        self._pairs[pair] = self._pairs.get(pair, 0) + 1
        self._callers[caller] = self._callers.get(caller, 0) + 1
        self._callees[callee] = self._callees.get(callee, 0) + 1
        return True

    def __len__(self) -> int:
        return len(self._recent)

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] <= now - WINDOW:
            _, caller, callee = self._recent.popleft()
            pair = (caller, callee)
            self._pairs[pair] -= 1
            self._callers[caller] -= 1
            self._callees[callee] -= 1
            if not self._pairs[pair]:
                del self._pairs[pair]
            if not self._callers[caller]:
                del self._callers[caller]
            if not self._callees[callee]:
                del self._callees[callee]
