"""What the log says of whom lists no longer accept (broker.mediator.revocation_log)."""

from __future__ import annotations

from twisted.internet.task import Clock

from broker.mediator.revocation_log import RevocationLog
from broker.tables.permits import Limit
from tests.mediator.conftest import Logged
from tests.mediator.permit_scene import PermitScene
from tests.mediator.scene import DONE, register
from tests.support.reactor import FakeReactor

NOW = 1_000_000.0


def texts(logged: Logged) -> list[str]:
    """The lines."""
    return [text.rpartition("] ")[2] for text in logged.texts()]


class FallenTests:
    """Entries that are no longer on a list."""

    def test_when_entries_are_lost_then_each_cause_has_a_line(self, logged: Logged) -> None:
        fallen = RevocationLog(Clock())
        gone = {"Ia": None, "Ic": Limit(until=NOW), "Id": Limit(uses=1), "Ie": Limit(uses=1)}
        fallen.removed("Ib", gone, NOW, "Id")
        assert texts(logged) == [
            "Ib has ceased to accept Ia, Ie: withdrawn",
            "Ib has ceased to accept Ic: expired",
            "Ib has ceased to accept Id: used up",
        ]
        fallen.stop()

    def test_when_a_list_changes_all_the_time_then_it_has_two_lines_a_second(
        self, logged: Logged
    ) -> None:
        """Those of others are logged (I15)."""
        clock = Clock()
        fallen = RevocationLog(clock)
        for n in range(100):
            fallen.removed("Ib", {f"t{n}": None, f"u{n}": None}, NOW)
        fallen.removed("Ic", {"Ia": None}, NOW)
        first = [
            "Ib has ceased to accept t0, u0: withdrawn",
            "Ic has ceased to accept Ia: withdrawn",
        ]
        assert texts(logged) == first
        clock.advance(1)
        rest = "Ib has ceased to accept 198 more within a second"
        assert texts(logged) == [*first, rest]
        fallen.removed("Ib", {"Ia": None}, NOW)
        assert texts(logged)[3:] == ["Ib has ceased to accept Ia: withdrawn"]
        clock.advance(5)
        assert len(logged.events) == 4
        assert not clock.getDelayedCalls()

    def test_when_a_name_holds_a_newline_then_it_makes_no_line(self, logged: Logged) -> None:
        """In either kind of line (I19)."""
        clock = Clock()
        fallen = RevocationLog(clock)
        fallen.removed("I\nb", {"I\na": None}, NOW)
        fallen.removed("I\nb", {"Ic": None}, NOW)
        clock.advance(1)
        assert len(logged.events) == 2
        assert not any("\n" in text for text in logged.texts())

    def test_when_it_is_stopped_then_what_is_counted_is_logged(self, logged: Logged) -> None:
        """No timer stays."""
        reactor = FakeReactor()
        fallen = RevocationLog(reactor)
        fallen.removed("Ib", {"Ia": None}, NOW)
        fallen.removed("Ib", {"Ic": None}, NOW)
        fallen.stop()
        assert texts(logged)[1:] == ["Ib has ceased to accept 1 more within a second"]
        assert not reactor.getDelayedCalls()

    def test_when_a_terminal_changes_its_list_often_then_the_log_counts(
        self, logged: Logged
    ) -> None:
        """However often (I15)."""
        scene = PermitScene()
        for n in range(50):
            scene.says("b", register("Ib", f"Accept:Create t{n}"), b=DONE)
        assert texts(logged).count("Ib has ceased to accept t0: withdrawn") == 1
        assert len([text for text in texts(logged) if "has ceased" in text]) == 1
        scene.passes(1)
        rest = "Ib has ceased to accept 48 more within a second"
        assert texts(logged)[-1] == rest
