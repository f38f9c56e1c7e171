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

    :ivar measured: how often it has measured
    """

    def __init__(self, clock: Clock, *loads: float, limit: float = 50.0) -> None:
        super().__init__(clock, limit)
        self.loads = list(loads)
        self.measured = 0

    def measure(self) -> float:
        self.measured += 1
        return self.loads.pop(0) if len(self.loads) > 1 else self.loads[0]


def a_load(clock: Clock, *loads: float) -> Metered:
    """A load that is measured; what comes before the first interval measures 99 %."""
    load = Metered(clock, 99.0, *loads)
    load.start()
    return load


def pass_intervals(clock: Clock, count: int) -> None:
    """Let so many measurements fall due."""
    for _ in range(count):
        clock.advance(INTERVAL)


class CpuLoadTests:
    """Fig. 18 (A14)."""

    def test_is_a_load(self) -> None:
        """Both ways to decide are given where a terminal takes one."""
        assert verifyObject(ILoad, CpuLoad(Clock(), 50.0))
        assert verifyObject(ILoad, Unlimited())
        assert Unlimited().acceptable()

    def test_what_was_before_counts_for_nothing(self) -> None:
        """The load from before the start is measured away, so a fresh terminal takes calls."""
        clock = Clock()
        load = a_load(clock, 10.0)
        assert (load.percent, load.acceptable()) == (0.0, True)
        pass_intervals(clock, 1)
        assert load.percent == 10.0

    def test_mean_over_a_sliding_window(self) -> None:
        """The load is the mean of the last five measurements: old ones no longer count (¶74)."""
        clock = Clock()
        load = a_load(clock, 100.0, 0.0, 0.0, 0.0, 0.0, 0.0, 50.0)
        means = []
        for _ in range(7):
            pass_intervals(clock, 1)
            means.append(round(load.percent, 6))
        assert WINDOW == 5
        assert means == [100.0, 50.0, 33.333333, 25.0, 20.0, 0.0, 10.0]

    @pytest.mark.parametrize(("percent", "acceptable"), [(49.9, True), (50.0, True), (50.1, False)])
    def test_limit(self, percent: float, acceptable: bool) -> None:
        """A load above the limit is too much (S1802); the limit itself is not."""
        clock = Clock()
        load = a_load(clock, percent)
        pass_intervals(clock, WINDOW)
        assert load.acceptable() is acceptable

    def test_one_busy_second_refuses_nobody(self) -> None:
        """A short peak among idle seconds leaves the status acceptable, a long one doesn't."""
        clock = Clock()
        load = a_load(clock, 0.0, 0.0, 0.0, 0.0, 100.0, 100.0, 100.0)
        pass_intervals(clock, 5)
        assert load.acceptable()
        pass_intervals(clock, 2)
        assert not load.acceptable()

    def test_asking_measures_nothing(self) -> None:
        """However often the status is asked, the measuring goes its own pace (¶74)."""
        clock = Clock()
        load = a_load(clock, 1.0)
        pass_intervals(clock, 3)
        for _ in range(100):
            load.acceptable()
        assert load.measured == 1 + 3

    def test_stop(self) -> None:
        """Stopped, it measures no longer and leaves no timer; twice does no harm."""
        clock = Clock()
        load = a_load(clock, 1.0)
        load.stop()
        load.stop()
        assert clock.getDelayedCalls() == []

    def test_start_again(self) -> None:
        """Started again, it forgets what it measured before."""
        clock = Clock()
        load = a_load(clock, 90.0)
        pass_intervals(clock, WINDOW)
        load.stop()
        load.start()
        assert load.percent == 0.0
        load.stop()

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
        pass_intervals(clock, 1)
        assert len(given) == 2
        assert load.percent == given[1]
        assert 0.0 <= load.percent <= 100.0
        load.stop()
