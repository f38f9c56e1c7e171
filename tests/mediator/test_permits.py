"""Limits of permits, and what becomes of calls while a list changes (broker.mediator.permits)."""

from __future__ import annotations

from typing import Final

import pytest
from twisted.internet.task import Clock

from broker.interfaces import StoreFailed
from broker.mediator.revocation_log import RevocationLog
from broker.tables.permits import Limit, PermitChange
from tests.mediator.conftest import Logged
from tests.mediator.permit_scene import (
    ASK,
    ASKS,
    DECIDES,
    ENDED,
    GRANTED,
    PermitScene,
    accepts,
    at_once,
    based_on,
    begins_edit,
    commits,
    edits,
    family,
    lists,
    revocations,
    stored,
)
from tests.mediator.scene import (
    BUSY,
    CAN,
    CANT,
    DENIED,
    DONE,
    NOT_CONNECTED,
    SCENES,
    STATUS,
    TODAY,
    UNAVAILABLE,
    Scene,
    begin,
    permits,
    query,
    register,
    terminate,
    to_callee,
)
from tests.mediator.steps import (
    Step,
    calls,
    dial,
    leaves,
    on_line,
    passes,
    play,
    says,
    sessions,
)
from tests.support.clock import settle, turn

#: Both sides learn of a call of Ia's.
TOLD: Final = {"b": to_callee("Ia"), "a": GRANTED}
REFUSED: Final = says("a", query("Ia", "Ib"), a=DENIED)
CAN_GRANT: Final = says("b", CAN, **TOLD)
NO_ROOM: Final = StoreFailed("no room")
NONE: Final = accepts()
#: To a call of Ia's with a transaction that took too long.
LATE: Final = "NOTIFY\nCallee not Connected.\nTransaction:{}\nCode:480\n\n"

#: An entry that permits for a time; the store keeps everything at once.
# fmt: off
EXPIRIES: Final[dict[str, list[Step]]] = {
    "before the callee answers": [
        edits("Add Ia;expires=3"), ASKS, passes(3), says("b", CAN, a=DENIED),
    ],
    "just after it": [edits("Add Ia;expires=3"), ASKS, passes(2.9), CAN_GRANT],
    # Who is permitted otherwise goes on, until that is withdrawn too.
    "another permit holds": [
        edits("Add Ia;expires=20,@family"), calls("a", "b"), passes(20), sessions(1),
        edits("Delete @family", a=terminate(), b=terminate() + DONE),
    ],
    # The limit that counts is the one given last: longer, shorter, or none.
    "a new limit": [
        edits("Add Ia;expires=20"), calls("a", "b"), edits("Add Ia;expires=25"), passes(24.9),
        edits("Add Ia;expires=1"), edits("Add Ia"), passes(4), edits("Add Ia;expires=1"),
        passes(1, **ENDED),
    ],
    # A terminal reads what remains.
    "what remains": [
        edits("Create Ic;expires=3600;uses=1,Ia"), lists("Create Ic;expires=3600;uses=1,Ia"),
        passes(59.5), lists("Create Ic;expires=3541;uses=1,Ia"),
    ],
}

#: A permit for one call, and what happens until the store has kept that it is used up.
USES: Final[dict[str, list[Step]]] = {
    # Nothing is told, and the use is not lost (I3, I5).
    "the store fails": [
        DECIDES, stored(0, NO_ROOM, a=UNAVAILABLE), sessions(0), DECIDES, stored(1, **TOLD),
    ],
    # A callee that is gone by then was told nothing: the use is given back.
    "the callee leaves": [
        DECIDES, leaves("b"), stored(0, a=NOT_CONNECTED), says("a", query("Ia", "Ib")),
        dial(succeeds=False, a=NOT_CONNECTED), stored(1), on_line("b"), DECIDES, stored(2, **TOLD),
        commits(NONE, accepts("Ia", uses=1), NONE),
    ],
    # If that can't be kept the use is lost, here as in the store (I7, I9).
    "the callee leaves, and the store fails": [
        DECIDES, leaves("b"), stored(0, a=NOT_CONNECTED), stored(1, NO_ROOM), on_line("b"),
        lists("Create"),
    ],
    # A caller waits as long as for any call; the use, kept by then or not, is put back.
    "it takes too long": [
        DECIDES, passes(5, a=NOT_CONNECTED), stored(0), stored(1),
        commits(NONE, accepts("Ia", uses=1)), at_once, calls("a", "b"),
    ],
    "it takes too long, and fails": [
        DECIDES, passes(5, a=NOT_CONNECTED), stored(0, NO_ROOM), stored(1),
        commits(NONE, accepts("Ia", uses=1)), at_once, calls("a", "b"),
    ],
    # The callee reads nothing (I15).
    "the caller leaves": [DECIDES, leaves("a"), stored(0), stored(1), lists("Create Ia;uses=1")],
    # A bare answer that waits for the store is overtaken by no later one (I11).
    "the caller asks more": [
        says("a", query("Ia", "Ib") + ASK, b=STATUS), says("b", CAN),
        stored(0, b=to_callee("Ia"), a=GRANTED + permits("Create")),
    ],
    # A new address, too, waits until the use is spent: what is told is in force (A7).
    "the callee moves": [
        DECIDES, says("b", register("Ib", "Address:127.0.0.1", "Port:9")),
        stored(0, b=to_callee("Ia") + DONE, a=GRANTED),
    ],
    # An edit of the list comes before the use or after it, never between (I9, I2).
    "the callee edits its list": [
        DECIDES, begins_edit("Delete Ia\nAdd Ic"), stored(0, **TOLD),
        stored(1, a=terminate(), b=terminate() + DONE), commits(NONE, accepts("Ic")),
    ],
    # A permit whose withdrawal is being kept is gone when the use's turn comes (I2).
    "the permit is withdrawn": [
        ASKS, says("b", register("Ib", "Accept:Delete Ia") + CAN), stored(0, b=DONE, a=DENIED),
        commits(NONE),
    ],
    # Calls that are refused cost no use, and nothing is kept (I5).
    "the callee is busy": [
        ASKS, says("b", CANT, a=BUSY), ASKS, says("b", CANT, a=BUSY), commits(), at_once,
        calls("a", "b"),
    ],
}
# fmt: on


class ExpiryTests:
    """An entry that permits for a time."""

    @pytest.mark.parametrize("case", EXPIRIES)
    def test_when_a_permit_expires_then_so_does_what_rests_on_it(self, case: str) -> None:
        """At that moment, and neither sooner nor later (I1, I2)."""
        play(PermitScene(groups=[family("Ia")]), *EXPIRIES[case])

    @pytest.mark.parametrize("begun", [False, True])
    def test_when_a_permit_expires_then_its_sessions_end(self, begun: bool, logged: Logged) -> None:
        """The entry is off the list for good, and the log says so (I2, I8)."""
        scene = PermitScene()
        scene.edits("Create Ia;expires=20,Ic")
        session = scene.calls("a", "b")
        if begun:
            scene.says("b", begin(session))
        scene.passes(19.9)
        scene.passes(0.1, **ENDED)
        assert scene.store.commits[-1] == (accepts("Ic"),)
        play(scene, REFUSED, REFUSED)
        assert revocations(logged) == ["Ib has ceased to accept Ia: expired"]

    def test_when_the_store_fails_then_what_expires_ends_even_so(self) -> None:
        """No caller is permitted in the meantime; the store is tried until it takes it (I2, I8)."""
        scene = PermitScene(accepts("Ia", until=TODAY + 20.0), at_once=False)
        scene.calls("a", "b")
        scene.passes(20, **ENDED)
        play(scene, REFUSED)
        for _ in range(3):
            scene.store.pending.pop().errback(NO_ROOM)
            play(scene, REFUSED)
            assert scene.store.pending == []
            scene.passes(60)
        scene.store.pending.pop().callback(None)
        scene.commits(*[NONE] * 4)
        assert scene.accepted() == ()
        scene.passes(600)
        assert len(scene.store.commits) == 4

    def test_when_the_mediator_restarts_then_limits_have_gone_on(self) -> None:
        """What expired while it was down is dropped (I10)."""
        first = PermitScene()
        first.edits("Create Ia;expires=3600,Ic;expires=60")
        scene = first.restarted(wall=lambda: TODAY + 3000.0)
        assert first.store.commits[-1] == (accepts("Ia", until=TODAY + 3600.0),)
        scene.says("b", ASK, b=permits("Create Ia;expires=600"))
        play(scene, passes(600), REFUSED)

    def test_when_the_clock_is_put_back_then_nothing_revives(self) -> None:
        """A limit goes by the time that has passed (I10)."""
        now = [TODAY + 0.0]
        scene = PermitScene(wall=lambda: now[0])
        scene.edits("Add Ia;expires=20")
        now[0] = TODAY - 86400.0
        play(scene, passes(20), REFUSED, lists("Create"))

    def test_when_a_limit_is_ten_years_then_no_timer_is_longer_than_an_hour(self) -> None:
        """And then it waits on."""
        scene = PermitScene()
        scene.edits("Add Ia;expires=315360000")
        for _ in range(3):
            timers = scene.clock.getDelayedCalls()
            assert 0 < max(call.getTime() for call in timers) - scene.clock.seconds() <= 3600
            scene.passes(3600)

    def test_when_many_lists_expire_at_once_then_a_few_are_done_in_a_turn(self) -> None:
        """All of them in the end (I24)."""
        many = [PermitChange(f"t{n}", ("Ia",), (("Ia", Limit(TODAY + 9.0)),)) for n in range(500)]
        scene = PermitScene(*many)
        scene.clock.rightNow += 9
        while (before := len(scene.store.commits)) < 500:
            turn(scene.clock)
            assert 0 < len(scene.store.commits) - before <= 64
        assert len(scene.context.permits.table) == 0

    def test_when_limits_are_replaced_then_nothing_is_left_of_them(self) -> None:
        """However often (I15)."""
        scene = PermitScene()
        for n in range(500):
            scene.edits(f"Add Ia;expires={5000 - n}")
        assert len(scene.context.permits._expiries._heap) < 100
        assert len(scene.clock.getDelayedCalls()) <= 3
        scene.edits("Create")
        assert len(scene.context.permits._expiries._heap) == 0

    def test_when_a_list_is_being_edited_then_what_expires_is_dropped_after_that(self) -> None:
        """The edit is not undone (I9)."""
        scene = PermitScene(accepts("Ia", until=TODAY + 20.0), at_once=False)
        play(scene, calls("a", "b"), passes(19), begins_edit("Add Ic"), passes(1, **ENDED))
        play(scene, stored(0, b=DONE), stored(1))
        assert scene.store.commits[1] == (accepts("Ic"),)
        assert scene.accepted() == ("Ic",)


class UsesTests:
    """An entry that permits a number of calls."""

    @pytest.mark.parametrize("case", USES)
    def test_when_a_use_is_being_kept_then_it_is_spent_once_or_given_back(self, case: str) -> None:
        """Whatever happens until the store has kept it (A7, I2, I3, I5, I7, I9, I11, I15)."""
        play(PermitScene(accepts("Ia", uses=1), at_once=False), *USES[case])

    def test_when_a_use_is_given_back_then_it_is_not_logged(self, logged: Logged) -> None:
        """The log says so once, when it is used up (I19)."""
        play(PermitScene(accepts("Ia", uses=1), at_once=False), *USES["the callee leaves"])
        assert revocations(logged) == ["Ib has ceased to accept Ia: used up"]

    def test_when_a_permit_is_used_up_then_the_last_call_goes_on(self, logged: Logged) -> None:
        """It permits that number of calls and no other (I7)."""
        scene = PermitScene()
        scene.edits("Add Ia;uses=2")
        scene.says("b", begin(scene.calls("a", "b", "1")))
        scene.lists("Create Ia;uses=1")
        assert revocations(logged) == []
        play(scene, calls("a", "b", "2"), REFUSED, lists("Create"), sessions(2))
        assert scene.store.commits[1:] == [(accepts("Ia", uses=1),), (NONE,)]
        assert revocations(logged) == ["Ib has ceased to accept Ia: used up"]

    def test_when_the_mediator_crashes_then_a_use_is_lost_and_not_had_twice(self) -> None:
        """Nothing is told before the use is kept (I7, I8); one that was not kept was not spent."""
        scene = PermitScene(accepts("Ia", uses=1), at_once=False)
        scene.decides()
        scene.commits(NONE)
        scene.store.pending[0].callback(None)
        scene.reads(**TOLD)
        play(scene.restarted(), REFUSED)
        scene = PermitScene(accepts("Ia", uses=1), at_once=False)
        scene.decides()
        SCENES.remove(scene)  # it was cut off
        play(scene.restarted(), ASKS_AGAIN)

    @pytest.mark.parametrize("callers", ["ac", "aa", "acac"])
    def test_when_several_call_at_once_then_one_has_the_use(self, callers: str) -> None:
        """Whether they are one caller or members of a group (I7)."""
        limited = accepts("@family", uses=1)
        scene = PermitScene(limited, groups=[family("Ia", "Ic")], at_once=False)
        for n, name in enumerate(callers):
            scene.says(name, query(f"I{name}", "Ib", f"Transaction:{n}"), b=STATUS)
        scene.clients["b"].type(CAN * len(callers))
        keep_all(scene)
        codes = [code for name in set(callers) for code in codes_of(scene, name)]
        assert sorted(codes) == sorted(["100", "200"] + ["403"] * (len(callers) - 1))
        assert len(scene.clients["b"].received()) == 1
        assert len(scene.store.commits) == 1

    def test_when_a_call_waits_for_another_use_and_gives_up_then_none_is_held_up(self) -> None:
        """Both have taken too long; both uses are there again."""
        scene = PermitScene(accepts("Ia", uses=2), at_once=False)
        for n in "12":
            scene.says("a", query("Ia", "Ib", f"Transaction:{n}"), b=STATUS)
            scene.says("b", CAN)
            scene.passes(3 if n == "1" else 2, **({"a": LATE.format(1)} if n == "2" else {}))
        scene.passes(3, a=LATE.format(2))
        scene.store.at_once = True
        keep_all(scene)
        scene.lists("Create Ia;uses=2")

    def test_when_there_is_a_bug_then_the_list_can_be_changed_later(self, logged: Logged) -> None:
        """The use is given back (I24)."""
        scene = PermitScene(accepts("Ia", uses=1))
        granted = scene.context.sessions.granted
        scene.context.sessions.granted = None  # type: ignore[assignment]
        play(scene, ASKS, says("b", CAN, a=UNAVAILABLE))
        assert len(logged.failures()) == 1
        scene.context.sessions.granted = granted  # type: ignore[method-assign]
        scene.calls("a", "b")
        assert len(scene.store.commits) == 3

    def test_when_the_callee_moves_while_a_use_is_kept_then_it_is_found_there(self) -> None:
        """Its new address is in force once the call is granted (A7)."""
        scene = PermitScene(accepts("Ia", uses=1), at_once=False)
        play(scene, *USES["the callee moves"])
        assert scene.address("Ib") == ("127.0.0.1", 9)

    @pytest.mark.parametrize("edit", ["Delete Ia", "Create Ic", "Delete Ic", "Add Ic"])
    def test_when_a_permit_is_used_up_then_only_its_withdrawal_ends_the_call(
        self, edit: str
    ) -> None:
        """A call whose permit is used up ends with an edit that takes off that permit (I2)."""
        scene = PermitScene(accepts("Ia", uses=1))
        scene.says("b", begin(scene.calls("a", "b")))
        is_withdrawn = edit in {"Delete Ia", "Create Ic"}
        scene.edits(edit, **({"a": terminate(), "b": terminate() + DONE} if is_withdrawn else {}))

    def test_when_a_used_up_permit_would_have_expired_then_its_call_ends(self) -> None:
        """A call goes on only as long as its permit would have stood (I2)."""
        scene = PermitScene()
        scene.edits("Add Ia;expires=60;uses=1")
        scene.says("b", begin(scene.calls("a", "b")))
        play(scene, edits("Add Ic"), passes(59.9), passes(0.1, **ENDED))

    def test_when_an_entry_expires_while_its_use_is_kept_then_the_call_is_refused(self) -> None:
        """What is kept too late is of no use (I1)."""
        scene = PermitScene(accepts("Ia", until=TODAY + 3.0, uses=1), at_once=False)
        play(scene, DECIDES, passes(3), stored(0, a=DENIED))
        for n in range(1, len(scene.store.pending)):
            scene.stored(n)
        scene.lists("Create")

    def test_when_another_entry_has_a_number_then_the_others_do_not_wait(self) -> None:
        """Ic, who is permitted without a number, waits for no store."""
        scene = PermitScene(accepts("Ia", "Ic", uses=1), at_once=False)
        play(scene, DECIDES, calls("c", "b"))
        scene.forget()
        play(scene, stored(0, **TOLD))

    def test_when_permitted_by_name_and_by_group_then_the_name_is_used_up_first(self) -> None:
        """Then the group permits."""
        scene = PermitScene(accepts("Ia", "@family", uses=1), groups=[family("Ia")])
        for n in "123":
            scene.calls("a", "b", n)
        scene.commits(accepts("@family"))

    def test_when_both_are_needed_at_once_then_neither_call_is_refused(self) -> None:
        """The second call is not refused for want of a use."""
        lists = accepts("Ia", "@family", uses=1)
        scene = PermitScene(lists, groups=[family("Ia")], at_once=False)
        for n in "12":
            scene.says("a", query("Ia", "Ib", f"Transaction:{n}"), b=STATUS)
        scene.says("b", CAN + CAN)
        scene.clients["a"].text()
        scene.store.pending[0].callback(None)
        assert codes_of(scene, "a") == ["100", "200"] * 2
        play(scene, based_on("Ia", "@family"))
        assert len(scene.clients["b"].received()) == 2


#: As ``ASKS``, in a scene that has started again.
ASKS_AGAIN: Final = says("a", query("Ia", "Ib"), b=STATUS)

#: A call while its disclosure is being kept, before the address leaves.
# fmt: off
DISCLOSURES: Final[dict[str, tuple[PermitChange, list[Step]]]] = {
    # Nothing is told before, everything after (I8).
    "kept": (accepts("Ia"), [stored(0, **TOLD), based_on("Ia")]),
    # Where it can't be kept nothing is told (I3).
    "not kept": (accepts("Ia"), [stored(0, NO_ROOM, a=UNAVAILABLE)]),
    # A permit that is withdrawn in the meantime is none, also if the store fails (I1, I2, A20).
    "permit withdrawn": (
        accepts("Ia"), [begins_edit("Delete Ia"), stored(1, b=DONE), stored(0, a=DENIED)],
    ),
    "permit withdrawn, and not kept": (
        accepts("Ia"), [begins_edit("Delete Ia"), stored(1, b=DONE), stored(0, NO_ROOM, a=DENIED)],
    ),
    # What is told rests on what was recorded, or is not told.
    "permitted by another entry": (
        accepts("Ia", "@family"),
        [begins_edit("Delete Ia"), stored(1, b=DONE), stored(0, a=UNAVAILABLE)],
    ),
    # Another permit does no harm.
    "permitted by one more": (
        accepts("@family"),
        [begins_edit("Add Ia"), stored(1, b=DONE), stored(0, **TOLD), based_on("@family")],
    ),
    # An address that was recorded, and is another now, is not told (I10).
    "callee moved": (accepts("Ia"), [on_line("b", port=9), stored(0, a=NOT_CONNECTED)]),
    # The use is kept, then the disclosure, then both sides are told (I7, I8).
    "with a use": (accepts("Ia", uses=1), [stored(0), stored(1, **TOLD), REFUSED]),
    # If the disclosure can't be kept the use is given back (I5).
    "with a use, and not kept": (
        accepts("Ia", uses=1),
        [stored(0), stored(1, NO_ROOM, a=UNAVAILABLE), stored(2), lists("Create Ia;uses=1")],
    ),
    # A bare answer that waits for the store is overtaken by no later one (I11).
    "caller asks more": (
        accepts("Ia"),
        [says("a", ASK), stored(0, b=to_callee("Ia"), a=GRANTED + permits("Create"))],
    ),
}
# fmt: on


class LedgerFirstTests:
    """``--ledger first``."""

    @pytest.mark.parametrize("case", DISCLOSURES)
    def test_when_a_disclosure_is_being_kept_then_all_is_checked_again(self, case: str) -> None:
        """Nothing is told that is not recorded, or not permitted (A20, I1–I3, I5, I7, I8, I11)."""
        permit, steps = DISCLOSURES[case]
        scene = PermitScene(permit, groups=[family("Ia")], at_once=False, ledger_first=True)
        scene.store.slow_ledger = True
        play(scene, DECIDES, *steps)


class BoundTests:
    """Sixteen unspent sessions a caller."""

    @pytest.mark.parametrize("ledger_first", [False, True])
    def test_when_eighteen_calls_wait_for_the_store_then_two_are_refused(
        self, ledger_first: bool
    ) -> None:
        """The bound holds across the wait, and no use is spent beyond it (I15)."""
        scene = PermitScene(ledger_first=ledger_first)
        uses = "" if ledger_first else ";uses=1"
        callees = [f"b{n}" for n in range(18)]
        for name in callees:
            lines = (f"Accept:Create Ia{uses}", "Address:127.0.0.1")
            scene.new_says(name, register(f"I{name}", *lines), DONE)
        scene.store.at_once, scene.store.slow_ledger = False, ledger_first
        for name in callees:
            scene.clients["a"].type(query("Ia", f"I{name}", f"Transaction:{name}"))
        for name in callees:
            scene.clients[name].type(CAN)
        keep_all(scene)
        assert codes_of(scene, "a") == ["100", "200"] * 16 + ["429", "429"]
        if not ledger_first:
            left = [scene.accepted(f"I{name}") for name in callees]
            assert left == [()] * 16 + [("Ia",)] * 2
        for name in callees:
            scene.clients[name].text()


class LogTests:
    """What the log says of lists (I19)."""

    def test_when_entries_are_lost_then_each_cause_has_a_line(self, logged: Logged) -> None:
        revoked = RevocationLog(Clock())
        gone = {"Ia": None, "Ic": Limit(until=TODAY), "Id": Limit(uses=1), "Ie": Limit(uses=1)}
        revoked.removed("Ib", gone, TODAY, "Id")
        assert revocations(logged) == [
            "Ib has ceased to accept Ia, Ie: withdrawn",
            "Ib has ceased to accept Ic: expired",
            "Ib has ceased to accept Id: used up",
        ]
        revoked.stop()

    def test_when_a_list_changes_all_the_time_then_it_has_two_lines_a_second(
        self, logged: Logged
    ) -> None:
        """Those of others are logged (I15)."""
        clock = Clock()
        revoked = RevocationLog(clock)
        for n in range(100):
            revoked.removed("Ib", {f"t{n}": None, f"u{n}": None}, TODAY)
        revoked.removed("Ic", {"Ia": None}, TODAY)
        first = [
            "Ib has ceased to accept t0, u0: withdrawn",
            "Ic has ceased to accept Ia: withdrawn",
        ]
        assert revocations(logged) == first
        clock.advance(1)
        rest = "Ib has ceased to accept 198 more within a second"
        assert revocations(logged) == [*first, rest]
        revoked.removed("Ib", {"Ia": None}, TODAY)
        assert revocations(logged)[3:] == ["Ib has ceased to accept Ia: withdrawn"]
        clock.advance(5)
        assert len(logged.events) == 4
        assert not clock.getDelayedCalls()

    def test_when_it_is_stopped_then_what_is_counted_is_logged(self, logged: Logged) -> None:
        """No timer stays; a name that holds a newline makes no line, in either kind (I19)."""
        clock = Clock()
        revoked = RevocationLog(clock)
        revoked.removed("I\nb", {"I\na": None}, TODAY)
        revoked.removed("I\nb", {"Ic": None}, TODAY)
        revoked.stop()
        assert [text.count("\n") for text in logged.texts()] == [0, 0]
        assert logged.texts()[1].endswith(" has ceased to accept 1 more within a second")
        assert not clock.getDelayedCalls()

    def test_when_a_terminal_changes_its_list_often_then_the_log_counts(
        self, logged: Logged
    ) -> None:
        """However often (I15)."""
        scene = PermitScene()
        for n in range(50):
            scene.edits(f"Create t{n}")
        assert revocations(logged) == ["Ib has ceased to accept t0: withdrawn"]
        scene.passes(1)
        assert revocations(logged)[1:] == ["Ib has ceased to accept 48 more within a second"]

    def test_when_many_entries_are_withdrawn_then_one_line_names_ten(self, logged: Logged) -> None:
        """One line a change, however many go."""
        scene = PermitScene()
        scene.edits("Create " + ",".join(f"t{n}" for n in range(15)))
        scene.edits("Create")
        named = ", ".join(f"t{n}" for n in range(10))
        assert revocations(logged) == [f"Ib has ceased to accept {named} and 5 more: withdrawn"]

    def test_when_a_caller_is_refused_again_and_again_then_nothing_is_logged(
        self, logged: Logged
    ) -> None:
        """A stranger fills no log (I15)."""
        scene = PermitScene(accepts("Ia", until=TODAY - 1.0))
        before = len(logged.events)
        play(scene, *[REFUSED] * 20)
        assert len(logged.events) == before


def keep_all(scene: PermitScene) -> None:
    """The store keeps all that it is given."""
    while scene.store.pending:
        commit = scene.store.pending.pop(0)
        if not commit.called:
            commit.callback(None)
    settle(scene.clock)


def codes_of(scene: Scene, name: str) -> list[str]:
    """The codes of what a terminal has read."""
    return [message.fields["Code"] for message in scene.clients[name].received()]
