"""The status from the load: measured all the time, against a limit."""

from __future__ import annotations

import psutil
import pytest
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from broker.interfaces import ILoad
from broker.terminal.load import INTERVAL, WINDOW, CpuLoad, Unlimited


class Metered(CpuLoad):
    """Measures the loads of a list, one after the other; the last one for ever.

    It has started; what was before that measures 99 %.

    :ivar measured: how often it has measured
    """

    def __init__(self, *loads: float) -> None:
        self.clock = Clock()
        super().__init__(self.clock, 50.0)
        self.loads = [99.0, *loads]
        self.measured = 0
        self.start()

    def measure(self) -> float:
        self.measured += 1
        return self.loads.pop(0) if len(self.loads) > 1 else self.loads[0]

    def means(self, count: int) -> list[float]:
        """The load after each of so many measurements that fall due."""
        found = []
        for _ in range(count):
            self.clock.advance(INTERVAL)
            found.append(round(self.percent, 6))
        return found


class CpuLoadTests:
    """Fig. 18 (A14)."""

    def test_is_a_load(self) -> None:
        """Both ways to decide are given where a terminal takes one."""
        assert verifyObject(ILoad, CpuLoad(Clock(), 50.0))
        assert verifyObject(ILoad, Unlimited())
        assert Unlimited().acceptable()

    def test_mean_over_a_sliding_window(self) -> None:
        """The load is the mean of the last five measurements (¶74).

        What was before the start is measured away, so a fresh terminal takes calls.
        """
        load = Metered(100.0, 0.0, 0.0, 0.0, 0.0, 0.0, 50.0)
        assert (load.percent, load.acceptable()) == (0.0, True)
        assert WINDOW == 5
        assert load.means(7) == [100.0, 50.0, 33.333333, 25.0, 20.0, 0.0, 10.0]

    @pytest.mark.parametrize(
        ("loads", "acceptable"),
        [
            # A load above the limit is too much (S1802); the limit itself is not.
            ([49.9], True),
            ([50.0], True),
            ([50.1], False),
            # A short peak among idle seconds leaves the status acceptable, a long one does not.
            ([0.0, 0.0, 0.0, 0.0, 100.0], True),
            ([0.0, 0.0, 100.0, 100.0, 100.0], False),
        ],
    )
    def test_limit(self, loads: list[float], acceptable: bool) -> None:
        """However often the status is asked, the measuring goes its own pace (¶74)."""
        load = Metered(*loads)
        load.means(WINDOW)
        assert {load.acceptable() for _ in range(100)} == {acceptable}
        assert load.measured == 1 + WINDOW

    def test_stop_and_start_again(self) -> None:
        """Stopped, it leaves no timer; started again, it forgets what it measured before."""
        load = Metered(90.0)
        load.means(WINDOW)
        load.stop()
        load.stop()  # twice does no harm
        assert load.clock.getDelayedCalls() == []
        load.start()
        assert load.percent == 0.0

    def test_real_measure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without another measure psutil is asked for the load of all processors, without waiting.

        The figure itself is the machine's; that it is asked, and what it gives is used, is ours.
        """
        given: list[float] = []
        real = psutil.cpu_percent

        def measure(interval: float | None = None, percpu: bool = False) -> float:
            assert (interval, percpu) == (None, False)
            given.append(real(interval=None))
            return given[-1]

        monkeypatch.setattr(psutil, "cpu_percent", measure)
        clock = Clock()
        load = CpuLoad(clock, 100.0)
        load.start()
        clock.advance(INTERVAL)
        assert len(given) == 2
        assert load.percent == given[1]
        assert 0.0 <= load.percent <= 100.0
