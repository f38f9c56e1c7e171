"""The status that a terminal gives (fig. 18), from the load of its machine."""

from __future__ import annotations

from collections import deque
from typing import Final

import psutil
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from broker.interfaces import ILoad

#: Seconds between two measurements, and the number of them in the average.
INTERVAL: Final = 1.0
WINDOW: Final = 5


@implementer(ILoad)
class Unlimited:
    """Any call can be taken."""

    def acceptable(self) -> bool:
        """Always true."""
        return True


@implementer(ILoad)
class CpuLoad:
    """Calls can be taken while the machine's processors are not too busy (¶74).

    The load is measured all the time, so that the answer is there at once. It is the mean of a
    sliding window, so that one busy second refuses no call.

    :ivar limit: the load above which no call is taken, in percent of all processors
    """

    def __init__(
        self,
        clock: IReactorTime,
        limit: float,
        *,
        interval: float = INTERVAL,
        window: int = WINDOW,
    ) -> None:
        """
        :param interval: seconds between two measurements
        :param window: the number of measurements in the mean
        """
        self.limit = limit
        self._interval = interval
        self._samples: deque[float] = deque(maxlen=window)
        self._measuring = LoopingCall(self._sample)
        self._measuring.clock = clock

    def start(self) -> None:
        """Start measuring."""
        self._samples.clear()
        self.measure()  # the load before now does not count
        self._measuring.start(self._interval, now=False)

    def stop(self) -> None:
        """Stop measuring."""
        if self._measuring.running:
            self._measuring.stop()

    @property
    def percent(self) -> float:
        """The mean load over the window; 0 before the first measurement."""
        return sum(self._samples) / len(self._samples) if self._samples else 0.0

    def acceptable(self) -> bool:
        """Whether the load is at most the limit (S1802)."""
        return self.percent <= self.limit

    def measure(self) -> float:
        """The load since the last call, in percent of all processors; takes no time."""
        percent: float = psutil.cpu_percent(interval=None)
        return percent

    def _sample(self) -> None:
        self._samples.append(self.measure())
