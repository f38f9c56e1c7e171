"""Limits, groups and names in lists, and what becomes of calls (broker.mediator.permits)."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from broker.interfaces import StoreFailed
from broker.net.keyed_lock import KeyedLock
from broker.tables.accounts import AccountChange
from broker.tables.disclosures import Disclosure
from broker.tables.groups import GroupChange, GroupRefused
from broker.tables.permits import Limit, PermitChange
from tests.mediator.conftest import Logged
from tests.mediator.scene import (
    ACCEPTED,
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
    SlowStore,
    begin,
    failed,
    permits,
    query,
    register,
    terminate,
    to_callee,
    to_caller,
)
from tests.support.clock import settle, turn

ASK = "QUERY\nPERMITS\n\n"
GRANTED = ACCEPTED + to_caller("Ib")


def accepts(entry: str, **limit: Any) -> PermitChange:
    """Ib's list, with one entry."""
    limits = ((entry, Limit(**limit)),) if limit else ()
    return PermitChange("Ib", (entry,), limits)


def stage(*permits: PermitChange, **options: Any) -> tuple[Scene, SlowStore]:
    """Ia, Ic and Ib, which is on line, around a store that does as the test says."""
    groups = options.pop("groups", ())
    store = SlowStore(*permits, groups=groups)
    store.at_once = options.pop("at_once", False)
    scene = Scene(store=store, **options)
    scene.connect("a", "c")
    scene.on_line("b")
    scene.says("a", register("Ia"), a=DONE)
    scene.says("c", register("Ic"), c=DONE)
    return scene, store


def at_once(*permits: PermitChange, **options: Any) -> tuple[Scene, SlowStore]:
    """The same, where the store keeps everything at once."""
    return stage(*permits, at_once=True, **options)


def restarted(store: SlowStore, **options: Any) -> Scene:
    """A mediator that begins with what a store has kept; Ia and Ib are there."""
    store.pending.clear()
    scene = Scene(store=store, **options)
    scene.connect("a")
    scene.on_line("b")
    scene.says("a", register("Ia"), a=DONE)
    return scene


def starts(scene: Scene, steps: Coroutine[Any, Any, None]) -> list[Any]:
    """Begin what the operator asks for; give its outcome, once there is one."""
    outcome: list[Any] = []
    Deferred.fromCoroutine(steps).addBoth(outcome.append)
    settle(scene.clock)
    return outcome


def does(scene: Scene, steps: Coroutine[Any, Any, None], **reads: str) -> None:
    """The operator does something, and others read something."""
    assert starts(scene, steps) == [None]
    scene.reads(**reads)


def disclosed(scene: Scene, store: SlowStore) -> list[Disclosure]:
    """What the store holds as told, once nothing waits to be written."""
    scene.broker.advance(1)
    return store.told


def errors(outcome: list[Any]) -> list[type[BaseException] | None]:
    """What went wrong."""
    return [one.type for one in outcome if isinstance(one, Failure)]


def lines(logged: Logged) -> list[str]:
    """What the log says of lists that accept somebody no longer."""
    return [text.rpartition("] ")[2] for text in logged.texts() if "has ceased to accept" in text]


class ExpiryTests:
    """An entry that permits for a time."""

    def test_while_asked(self) -> None:
        """A permit that expires while the status is asked is none when that is told (I1)."""
        for seconds, told in ((2.9, True), (3, False)):
            scene, _ = at_once()
            scene.says("b", register("Ib", "Accept:Add Ia;expires=3"), b=DONE)
            scene.says("a", query("Ia", "Ib"), b=STATUS)
            scene.passes(seconds)
            if told:
                scene.says("b", CAN, b=to_callee("Ia"), a=GRANTED)
            else:
                scene.says("b", CAN, a=DENIED)

    @pytest.mark.parametrize("begun", [False, True])
    def test_ends_what_rested_on_it(self, begun: bool, logged: Logged) -> None:
        """It takes its sessions with it, is off the list for good, and the log says so (I2, I8)."""
        scene, store = at_once()
        scene.says("b", register("Ib", "Accept:Create Ia;expires=20,Ic"), b=DONE)
        session = scene.calls("a", "b")
        if begun:
            scene.says("b", begin(session))
        scene.passes(19.9)
        scene.passes(0.1, a=terminate(), b=terminate())
        assert store.commits[-1] == (PermitChange("Ib", ("Ic",)),)
        scene.says("a", query("Ia", "Ib"), a=DENIED)
        scene.says("a", query("Ia", "Ib"), a=DENIED)
        assert lines(logged) == ["Ib has ceased to accept Ia: expired"]

    def test_another_permit_holds(self) -> None:
        """Who is permitted otherwise goes on."""
        scene, store = at_once(groups=[GroupChange("@family", ("Ia",))])
        scene.says("b", register("Ib", "Accept:Add Ia;expires=20,@family"), b=DONE)
        scene.calls("a", "b")
        scene.passes(20)
        assert len(scene.context.sessions) == 1
        assert store.commits[-1] == (accepts("@family"),)
        scene.says(
            "b", register("Ib", "Accept:Delete @family"), a=terminate(), b=terminate() + DONE
        )

    def test_at_once_however_slow_the_store(self) -> None:
        """Sessions end and nobody is permitted before the store has heard of it, or if it can't.

        It is asked again until it has (I2, I8).
        """
        scene, store = stage(accepts("Ia", until=TODAY + 20.0))
        scene.calls("a", "b")
        scene.passes(20, a=terminate(), b=terminate())
        scene.says("a", query("Ia", "Ib"), a=DENIED)
        for _ in range(3):
            store.pending.pop().errback(StoreFailed("no room"))
            scene.says("a", query("Ia", "Ib"), a=DENIED)
            assert store.pending == []
            scene.passes(60)
        store.pending.pop().callback(None)
        assert store.commits == [(PermitChange("Ib", ()),)] * 4
        assert scene.context.permits.table.accepted("Ib") == ()
        scene.passes(600)
        assert len(store.commits) == 4

    def test_a_new_limit(self) -> None:
        """The limit that counts is the one given last: longer, shorter, or none."""
        scene, _ = at_once()
        scene.says("b", register("Ib", "Accept:Add Ia;expires=20"), b=DONE)
        scene.calls("a", "b")
        scene.says("b", register("Ib", "Accept:Add Ia;expires=25"), b=DONE)
        scene.passes(24.9)
        scene.says("b", register("Ib", "Accept:Add Ia;expires=1"), b=DONE)
        scene.says("b", register("Ib", "Accept:Add Ia"), b=DONE)
        scene.passes(4)
        scene.says("b", register("Ib", "Accept:Add Ia;expires=1"), b=DONE)
        scene.passes(1, a=terminate(), b=terminate())

    def test_told(self) -> None:
        """A terminal is told what remains."""
        scene, _ = at_once()
        scene.says("b", register("Ib", "Accept:Create Ic;expires=3600;uses=1,Ia"), b=DONE)
        scene.says("b", ASK, b=permits("Create Ic;expires=3600;uses=1,Ia"))
        scene.passes(59.5)
        scene.says("b", ASK, b=permits("Create Ic;expires=3541;uses=1,Ia"))

    def test_restart(self) -> None:
        """A time limit goes on while the mediator is down; what expired then is dropped (I10)."""
        first, store = at_once()
        first.says("b", register("Ib", "Accept:Create Ia;expires=3600,Ic;expires=60"), b=DONE)
        scene = restarted(store, wall=lambda: TODAY + 3000.0)
        assert store.commits[-1] == (accepts("Ia", until=TODAY + 3600.0),)
        scene.says("b", ASK, b=permits("Create Ia;expires=600"))
        scene.passes(600)
        scene.says("a", query("Ia", "Ib"), a=DENIED)

    def test_no_step_revives(self) -> None:
        """That somebody sets the clock back revives nothing (I10)."""
        now = [TODAY + 0.0]
        scene, _ = at_once(wall=lambda: now[0])
        scene.says("b", register("Ib", "Accept:Add Ia;expires=20"), b=DONE)
        now[0] = TODAY - 86400.0
        scene.passes(20)
        scene.says("a", query("Ia", "Ib"), a=DENIED)
        scene.says("b", ASK, b=permits("Create"))

    def test_ten_years(self) -> None:
        """However far off, no timer waits for longer than an hour, and then it waits on."""
        scene, _ = at_once()
        scene.says("b", register("Ib", "Accept:Add Ia;expires=315360000"), b=DONE)
        for _ in range(3):
            calls = scene.clock.getDelayedCalls()
            assert 0 < max(call.getTime() for call in calls) - scene.clock.seconds() <= 3600
            scene.passes(3600)

    def test_many_at_once(self) -> None:
        """Many lists that expire together are looked at a few in a turn (I24), all in the end."""
        many = [PermitChange(f"t{n}", ("Ia",), (("Ia", Limit(TODAY + 9.0)),)) for n in range(500)]
        scene, store = at_once(*many)
        scene.clock.rightNow += 9
        seen = []
        while len(store.commits) < 500:
            before = len(store.commits)
            turn(scene.clock)
            seen.append(len(store.commits) - before)
            assert 0 < seen[-1] <= 64
        assert len(scene.context.permits.table) == 0

    def test_given_again_and_again(self) -> None:
        """Limits that are replaced leave nothing behind (I15)."""
        scene, _ = at_once()
        for n in range(500):
            scene.says("b", register("Ib", f"Accept:Add Ia;expires={5000 - n}"), b=DONE)
        assert len(scene.context.permits._expiries._heap) < 100
        assert len(scene.clock.getDelayedCalls()) <= 3
        scene.says("b", register("Ib", "Accept:Create"), b=DONE)
        assert len(scene.context.permits._expiries._heap) == 0

    def test_an_edit_under_way(self) -> None:
        """What expires while an edit of its list is being kept is dropped behind it (I9)."""
        scene, store = stage(accepts("Ia", until=TODAY + 20.0))
        scene.calls("a", "b")
        scene.passes(19)
        scene.says("b", register("Ib", "Accept:Add Ic"))
        scene.passes(1, a=terminate(), b=terminate())
        scene.fires(store.pending[0], b=DONE)
        scene.fires(store.pending[1])
        assert store.commits[1] == (accepts("Ic"),)
        assert scene.context.permits.table.accepted("Ib") == ("Ic",)


class UsesTests:
    """An entry that permits a number of calls."""

    def test_used_up(self, logged: Logged) -> None:
        """It permits so many calls and no more; the last one goes on (I7)."""
        scene, store = at_once()
        scene.says("b", register("Ib", "Accept:Add Ia;uses=2"), b=DONE)
        scene.says("b", begin(scene.calls("a", "b", "1")))
        scene.says("b", ASK, b=permits("Create Ia;uses=1"))
        assert lines(logged) == []
        scene.calls("a", "b", "2")
        scene.says("a", query("Ia", "Ib"), a=DENIED)
        scene.says("b", ASK, b=permits("Create"))
        assert store.commits[1:] == [(accepts("Ia", uses=1),), (PermitChange("Ib", ()),)]
        assert len(scene.context.sessions) == 2
        assert lines(logged) == ["Ib has ceased to accept Ia: used up"]

    def test_durable_before_it_is_told(self) -> None:
        """Nobody is told anything before the use is kept; after a crash it is lost, not had twice.

        (I7, I8)
        """
        scene, store = stage(accepts("Ia", uses=1))
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", CAN)
        assert store.commits == [(PermitChange("Ib", ()),)]
        store.pending[0].callback(None)
        scene.reads(b=to_callee("Ia"), a=GRANTED)
        again = restarted(store)
        again.says("a", query("Ia", "Ib"), a=DENIED)

    def test_a_crash_before(self) -> None:
        """A use that was not kept was not had."""
        scene, store = stage(accepts("Ia", uses=1))
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", CAN)
        SCENES.remove(scene)  # it was cut off
        again = restarted(store)
        again.says("a", query("Ia", "Ib"), b=STATUS)

    def test_exactly_one(self) -> None:
        """Of calls at the same time, by one caller or by members of a group, one has it (I7)."""
        for callers in (("a", "c"), ("a", "a"), ("a", "c", "a", "c")):
            family = GroupChange("@family", ("Ia", "Ic"))
            scene, store = stage(accepts("@family", uses=1), groups=[family])
            for n, name in enumerate(callers):
                ask = query(f"I{name}", "Ib", f"Transaction:{n}")
                scene.says(name, ask, b=STATUS)
            scene.clients["b"].type(CAN * len(callers))
            while store.pending:
                store.pending.pop(0).callback(None)
            settle(scene.clock)
            codes = [
                message.fields["Code"]
                for name in set(callers)
                for message in scene.clients[name].received()
            ]
            assert sorted(codes) == sorted(["100", "200"] + ["403"] * (len(callers) - 1))
            assert len(scene.clients["b"].received()) == 1
            assert len(store.commits) == 1

    def test_store_fails(self) -> None:
        """If the use can't be kept nothing is told, and it is not lost (I3, I5)."""
        scene, store = stage(accepts("Ia", uses=1))
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", CAN)
        scene.fires(store.pending.pop(), StoreFailed("no room"), a=UNAVAILABLE)
        assert len(scene.context.sessions) == 0
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", CAN)
        scene.fires(store.pending.pop(), b=to_callee("Ia"), a=GRANTED)

    def test_given_back(self, logged: Logged) -> None:
        """A callee that is gone by the time the use is kept was told nothing: it is given back."""
        scene, store = stage(accepts("Ia", uses=1))
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", CAN)
        scene.leaves("b")
        scene.fires(store.pending[0], a=NOT_CONNECTED)
        scene.says("a", query("Ia", "Ib"))
        scene.dials[-1].refuse()
        scene.reads(a=NOT_CONNECTED)
        scene.fires(store.pending[1])
        scene.on_line("b")
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", CAN)
        scene.fires(store.pending[2], b=to_callee("Ia"), a=GRANTED)
        assert store.commits == [
            (PermitChange("Ib", ()),),
            (accepts("Ia", uses=1),),
            (PermitChange("Ib", ()),),
        ]
        assert lines(logged) == ["Ib has ceased to accept Ia: used up"]

    def test_not_given_back(self) -> None:
        """If that can't be kept the use is lost, here as in the store (I7, I9)."""
        scene, store = stage(accepts("Ia", uses=2))
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", CAN)
        scene.leaves("b")
        scene.fires(store.pending[0], a=NOT_CONNECTED)
        scene.fires(store.pending[1], StoreFailed("no room"))
        scene.on_line("b")
        scene.says("b", ASK, b=permits("Create Ia;uses=1"))

    @pytest.mark.parametrize("kept", [True, False])
    def test_out_of_time(self, kept: bool) -> None:
        """A caller waits no longer than for any call; the use, kept by then or not, is put back."""
        scene, store = stage(accepts("Ia", uses=1))
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", CAN)
        scene.passes(5, a=NOT_CONNECTED)
        first, second = store.pending
        if kept:
            scene.fires(first)
        else:
            scene.fires(first, StoreFailed("no room"))
        scene.fires(second)
        assert store.commits[1] == (accepts("Ia", uses=1),)
        store.at_once = True
        scene.calls("a", "b")

    def test_the_caller_leaves(self) -> None:
        """So it is if the caller goes away; the callee hears of nothing (I15)."""
        scene, store = stage(accepts("Ia", uses=1))
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", CAN)
        scene.leaves("a")
        for commit in store.pending:
            scene.fires(commit)
        scene.says("b", ASK, b=permits("Create Ia;uses=1"))

    def test_out_of_time_before_its_turn(self) -> None:
        """Who gives up while another use of the list is taken holds nobody up."""
        scene, store = stage(accepts("Ia", uses=2))
        scene.says("a", query("Ia", "Ib", "Transaction:1"), b=STATUS)
        scene.says("b", CAN)
        scene.passes(3)
        scene.says("a", query("Ia", "Ib", "Transaction:2"), b=STATUS)
        scene.says("b", CAN)
        late = "NOTIFY\nCallee not Connected.\nTransaction:{}\nCode:480\n\n"
        scene.passes(2, a=late.format(1))
        scene.passes(3, a=late.format(2))
        store.at_once = True
        for commit in store.pending:
            scene.fires(commit)
        scene.says("b", ASK, b=permits("Create Ia;uses=2"))

    def test_a_fault_holds_no_list_up(self, logged: Logged) -> None:
        """Whatever goes wrong, the list can be changed afterwards (I24)."""
        scene, store = at_once(accepts("Ia", uses=1))
        granted = scene.context.sessions.granted
        scene.context.sessions.granted = None  # type: ignore[assignment]
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", CAN, a=UNAVAILABLE)
        assert len(logged.failures()) == 1
        scene.context.sessions.granted = granted  # type: ignore[method-assign]
        scene.calls("a", "b")
        assert len(store.commits) == 3

    def test_in_order(self) -> None:
        """A bare answer that waits for the store is overtaken by no later one (I11)."""
        scene, store = stage(accepts("Ia", uses=1))
        scene.says("a", query("Ia", "Ib") + ASK, b=STATUS)
        scene.says("b", CAN)
        scene.fires(store.pending[0], b=to_callee("Ia"), a=GRANTED + permits("Create"))

    def test_moved_meanwhile(self) -> None:
        """A new address, too, waits until the use has been had: what is told is in force (A7)."""
        scene, store = stage(accepts("Ia", uses=1))
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", CAN)
        scene.says("b", register("Ib", "Address:127.0.0.1", "Port:9"))
        scene.fires(store.pending[0], b=to_callee("Ia") + DONE, a=GRANTED)
        assert scene.address("Ib") == ("127.0.0.1", 9)

    def test_edits_wait(self) -> None:
        """An edit of the list comes before the use or after it, never between (I9, I2)."""
        scene, store = stage(accepts("Ia", uses=1))
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", CAN)
        scene.says("b", register("Ib", "Accept:Delete Ia\nAdd Ic"))
        scene.fires(store.pending[0], b=to_callee("Ia"), a=GRANTED)
        scene.fires(store.pending[1], b=terminate() + DONE, a=terminate())
        assert store.commits[1] == (accepts("Ic"),)

    def test_withdrawn_before_its_turn(self) -> None:
        """A permit whose withdrawal is being kept is gone when the use's turn comes (I2)."""
        scene, store = stage(accepts("Ia", uses=1))
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", register("Ib", "Accept:Delete Ia") + CAN)
        scene.fires(store.pending[0], b=DONE, a=DENIED)
        assert len(store.commits) == 1

    @pytest.mark.parametrize(
        ("edits", "ends"),
        [("Delete Ia", True), ("Create Ic", True), ("Delete Ic", False), ("Add Ic", False)],
    )
    def test_withdrawn_once_used_up(self, edits: str, ends: bool) -> None:
        """A call whose permit is used up is ended by who takes that permit off, not else (I2)."""
        scene, _ = at_once(accepts("Ia", uses=1))
        scene.says("b", begin(scene.calls("a", "b")))
        if ends:
            told = register("Ib", f"Accept:{edits}")
            scene.says("b", told, a=terminate(), b=terminate() + DONE)
        else:
            scene.says("b", register("Ib", f"Accept:{edits}"), b=DONE)

    def test_used_up_and_expired(self) -> None:
        """A call goes on for no longer than its permit would have stood (I2)."""
        scene, _ = at_once()
        scene.says("b", register("Ib", "Accept:Add Ia;expires=60;uses=1"), b=DONE)
        scene.says("b", begin(scene.calls("a", "b")))
        scene.says("b", register("Ib", "Accept:Add Ic"), b=DONE)
        scene.passes(59.9)
        scene.passes(0.1, a=terminate(), b=terminate())

    def test_expires_while_it_is_kept(self) -> None:
        """A use that is kept once its entry has expired is of no use (I1)."""
        scene, store = stage(accepts("Ia", until=TODAY + 3.0, uses=1))
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", CAN)
        scene.passes(3)
        scene.fires(store.pending[0], a=DENIED)
        for commit in store.pending[1:]:
            scene.fires(commit)
        scene.says("b", ASK, b=permits("Create"))

    def test_refusals_cost_none(self) -> None:
        """A busy callee, or one that is away, costs no use, and nothing is kept (I5)."""
        scene, store = at_once(accepts("Ia", uses=1))
        for _ in range(3):
            scene.says("a", query("Ia", "Ib"), b=STATUS)
            scene.says("b", CANT, a=BUSY)
        assert store.commits == []
        scene.calls("a", "b")

    def test_others_on_the_list_pay_nothing(self) -> None:
        """Who is permitted without a number waits for no store, whoever else is on the list."""
        limits = (("Ia", Limit(uses=1)),)
        scene, store = stage(PermitChange("Ib", ("Ia", "Ic"), limits))
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", CAN)
        scene.calls("c", "b")
        scene.forget()
        scene.fires(store.pending[0], b=to_callee("Ia"), a=GRANTED)

    def test_by_name_and_by_group(self) -> None:
        """Who is permitted both ways uses up the one by name, then the other."""
        family = GroupChange("@family", ("Ia",))
        limits = (("Ia", Limit(uses=1)),)
        scene, store = at_once(PermitChange("Ib", ("Ia", "@family"), limits), groups=[family])
        for n in "123":
            scene.calls("a", "b", n)
        assert store.commits == [(accepts("@family"),)]

    def test_both_ways_at_once(self) -> None:
        """So it is with calls at the same time: the second is not refused for want of a use."""
        family = GroupChange("@family", ("Ia",))
        limits = (("Ia", Limit(uses=1)),)
        scene, store = stage(PermitChange("Ib", ("Ia", "@family"), limits), groups=[family])
        for n in "12":
            scene.says("a", query("Ia", "Ib", f"Transaction:{n}"), b=STATUS)
        scene.says("b", CAN + CAN)
        scene.clients["a"].text()
        store.pending[0].callback(None)
        codes = [message.get("Code") for message in scene.clients["a"].received()]
        assert codes == ["100", "200"] * 2
        assert [told.basis for told in disclosed(scene, store)] == ["Ia", "@family"]
        assert len(scene.clients["b"].received()) == 2

    def test_sixteen_at_once(self) -> None:
        """The bound on sessions holds while uses are taken, and costs none beyond it (I15)."""
        scene, store = stage()
        store.at_once = True
        for n in range(18):
            lines = ("Accept:Create Ia;uses=1", "Address:127.0.0.1")
            scene.new_says(f"b{n}", register(f"Ib{n}", *lines), DONE)
        store.at_once = False
        for n in range(18):
            scene.clients["a"].type(query("Ia", f"Ib{n}", f"Transaction:{n}"))
        for n in range(18):
            scene.clients[f"b{n}"].type(CAN)
        while store.pending:
            store.pending.pop(0).callback(None)
        codes = [message.get("Code") for message in scene.clients["a"].received()]
        assert codes == ["100", "200"] * 16 + ["429", "429"]
        left = [scene.context.permits.table.accepted(f"Ib{n}") for n in range(18)]
        assert left == [()] * 16 + [("Ia",)] * 2
        for n in range(18):
            scene.clients[f"b{n}"].text()


class LedgerFirstTests:
    """What a call rests on while its disclosure is being kept, before the address leaves."""

    @staticmethod
    def kept_later(*permits: PermitChange, **options: Any) -> tuple[Scene, SlowStore]:
        """Ia asks for Ib, which can; the store is about to keep the disclosure."""
        scene, store = stage(*permits, ledger_first=True, **options)
        store.slow_ledger = True
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", CAN)
        return scene, store

    def test_kept(self) -> None:
        """Nothing is told before, everything after (I8)."""
        scene, store = self.kept_later(accepts("Ia"))
        scene.fires(store.pending[0], b=to_callee("Ia"), a=GRANTED)
        assert [(told.owner, told.recipient, told.basis) for told in store.told] == [
            ("Ib", "Ia", "Ia")
        ]

    def test_fails(self) -> None:
        """Where it can't be kept nothing is told (I3)."""
        scene, store = self.kept_later(accepts("Ia"))
        scene.fires(store.pending[0], StoreFailed("no room"), a=UNAVAILABLE)

    def test_withdrawn_meanwhile(self) -> None:
        """A permit that is withdrawn meanwhile is none, also if the store fails (I1, I2, A20)."""
        for error in (None, StoreFailed("no room")):
            scene, store = self.kept_later(accepts("Ia"))
            scene.says("b", register("Ib", "Accept:Delete Ia"))
            scene.fires(store.pending[1], b=DONE)
            scene.fires(store.pending[0], error, a=DENIED)

    def test_another_permit_meanwhile(self) -> None:
        """What is told rests on what was recorded, or isn't told; another one beside it is fine."""
        family = GroupChange("@family", ("Ia",))
        both = PermitChange("Ib", ("Ia", "@family"))
        scene, store = self.kept_later(both, groups=[family])
        scene.says("b", register("Ib", "Accept:Delete Ia"))
        scene.fires(store.pending[1], b=DONE)
        scene.fires(store.pending[0], a=UNAVAILABLE)
        scene, store = self.kept_later(accepts("@family"), groups=[family])
        scene.says("b", register("Ib", "Accept:Add Ia"))
        scene.fires(store.pending[1], b=DONE)
        scene.fires(store.pending[0], b=to_callee("Ia"), a=GRANTED)
        assert [told.basis for told in disclosed(scene, store)] == ["@family"]

    def test_moved_meanwhile(self) -> None:
        """An address that was recorded and is no longer the one is not told (I10)."""
        scene, store = self.kept_later(accepts("Ia"))
        scene.on_line("b", port=9)
        scene.fires(store.pending[0], a=NOT_CONNECTED)

    def test_with_a_use(self) -> None:
        """The use is kept, then the disclosure, then both sides are told (I7, I8)."""
        scene, store = self.kept_later(accepts("Ia", uses=1))
        scene.fires(store.pending[0])
        assert len(store.pending) == 2
        scene.fires(store.pending[1], b=to_callee("Ia"), a=GRANTED)
        scene.says("a", query("Ia", "Ib"), a=DENIED)

    def test_with_a_use_and_failing(self) -> None:
        """If the disclosure can't be kept the use is given back (I5)."""
        scene, store = self.kept_later(accepts("Ia", uses=1))
        scene.fires(store.pending[0])
        scene.fires(store.pending[1], StoreFailed("no room"), a=UNAVAILABLE)
        scene.fires(store.pending[2])
        scene.says("b", ASK, b=permits("Create Ia;uses=1"))

    def test_sixteen_at_once(self) -> None:
        """The bound on unspent sessions holds across the wait for the store (I15)."""
        scene, store = stage(ledger_first=True)
        store.at_once = True
        for n in range(18):
            lines = ("Accept:Create Ia", "Address:127.0.0.1")
            scene.new_says(f"b{n}", register(f"Ib{n}", *lines), DONE)
        store.at_once, store.slow_ledger = False, True
        for n in range(18):
            scene.clients["a"].type(query("Ia", f"Ib{n}", f"Transaction:{n}"))
            scene.clients[f"b{n}"].type(CAN)
        for commit in store.pending:
            commit.callback(None)
        codes = [message.get("Code") for message in scene.clients["a"].received()]
        assert codes == ["100", "200"] * 16 + ["429", "429"]
        for n in range(18):
            scene.clients[f"b{n}"].text()

    def test_in_order(self) -> None:
        """A bare answer that waits for the store is overtaken by no later one (I11)."""
        scene, store = self.kept_later(accepts("Ia"))
        scene.says("a", ASK)
        scene.fires(store.pending[0], b=to_callee("Ia"), a=GRANTED + permits("Create"))


class GroupsTests:
    """An entry that names a group (A18)."""

    FAMILY = GroupChange("@family", ("Ia", "Ic"))

    def test_members_are_permitted(self) -> None:
        """Who is in the group is permitted, who isn't isn't, and the callee's list says who is."""
        scene, store = at_once(accepts("@family"), groups=[GroupChange("@family", ("Ia",))])
        scene.calls("a", "b")
        scene.says("c", query("Ic", "Ib"), c=DENIED)
        assert [told.basis for told in disclosed(scene, store)] == ["@family"]
        does(scene, scene.context.permit_admin.regroup("@family", ["Ia", "Ic"]))
        scene.calls("c", "b", "1")

    def test_named_before_it_is_made(self) -> None:
        """A group that isn't there permits nobody, and counts from when it is (I3)."""
        scene, _ = at_once()
        scene.says("b", register("Ib", "Accept:Add @family"), b=DONE)
        scene.says("a", query("Ia", "Ib"), a=DENIED)
        does(scene, scene.context.permit_admin.regroup("@family", ["Ia"]))
        scene.calls("a", "b")

    def test_nobody_takes_its_name(self) -> None:
        """No terminal is called as a group is (I4)."""
        scene, _ = at_once(accepts("@family"))
        scene.connect("x")
        told = "NOTIFY\nBad Message.\nCause:Identifier: an identifier begins with @\n\n"
        scene.says("x", query("@family", "Ib"), x=told)

    def test_left_while_asked(self) -> None:
        """A membership withdrawn while the status is asked: 5c (I1, I2)."""
        scene, _ = at_once(accepts("@family"), groups=[self.FAMILY])
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        does(scene, scene.context.permit_admin.regroup("@family", ["Ic"]))
        scene.says("b", CAN, a=DENIED)

    @pytest.mark.parametrize("begun", [False, True])
    def test_left_in_a_session(self, begun: bool) -> None:
        """Who leaves the group loses the sessions that rested on it; the others don't (I2)."""
        scene, _ = at_once(accepts("@family"), groups=[self.FAMILY])
        session = scene.calls("a", "b")
        scene.calls("c", "b", "1")
        if begun:
            scene.says("b", begin(session))
        regroup = scene.context.permit_admin.regroup("@family", ["Ic"])
        does(scene, regroup, a=terminate(), b=terminate())
        assert len(scene.context.sessions) == 1

    def test_left_where_the_entry_was_used_up(self) -> None:
        """A call that rests on an entry that is used up ends with the membership, too (I2)."""
        scene, _ = at_once(accepts("@family", uses=1), groups=[self.FAMILY])
        scene.calls("a", "b")
        regroup = scene.context.permit_admin.regroup("@family", [])
        does(scene, regroup, a=terminate(), b=terminate())

    def test_by_name_too(self) -> None:
        """Who is permitted by name as well goes on until that is gone, too (I2)."""
        both = PermitChange("Ib", ("Ia", "@family"))
        scene, _ = at_once(both, groups=[self.FAMILY])
        scene.calls("a", "b")
        does(scene, scene.context.permit_admin.regroup("@family", []))
        told = register("Ib", "Accept:Delete Ia")
        scene.says("b", told, a=terminate(), b=terminate() + DONE)

    def test_first_by_name(self) -> None:
        """And the other way round."""
        both = PermitChange("Ib", ("Ia", "@family"))
        scene, _ = at_once(both, groups=[self.FAMILY])
        scene.calls("a", "b")
        scene.says("b", register("Ib", "Accept:Delete Ia"), b=DONE)
        regroup = scene.context.permit_admin.regroup("@family", ["Ic"])
        does(scene, regroup, a=terminate(), b=terminate())

    def test_taken_off_the_list(self) -> None:
        """A group that is taken off a list takes its members' sessions there with it (I2)."""
        scene, _ = at_once(accepts("@family"), groups=[self.FAMILY])
        scene.calls("a", "b")
        scene.calls("c", "b", "1")
        told = terminate() + terminate("1")
        edit = register("Ib", "Accept:Delete @family\nAdd Id")
        scene.says("b", edit, a=terminate(), c=terminate("1"), b=told + DONE)

    def test_durable_first(self) -> None:
        """A group is as it was until the store has kept it, and if it can't (I5, I8)."""
        scene, store = stage(accepts("@family"), groups=[self.FAMILY])
        scene.calls("a", "b")
        done = starts(scene, scene.context.permit_admin.regroup("@family", []))
        scene.fires(store.pending.pop(), StoreFailed("no room"))
        assert errors(done) == [StoreFailed]
        scene.calls("a", "b", "1")
        done = starts(scene, scene.context.permit_admin.regroup("@family", ["Ic"]))
        scene.calls("a", "b", "2")
        assert done == []
        scene.fires(store.pending.pop(), a=terminate("2"), b=terminate("2"))
        assert done == [None]
        assert store.commits[1] == (GroupChange("@family", ("Ic",)),)
        again = restarted(store)
        again.says("a", query("Ia", "Ib"), a=DENIED)

    def test_one_after_the_other(self) -> None:
        """Two changes at a time are made in their order (I9)."""
        scene, store = stage(accepts("@family"))
        for members in (["Ia"], ["Ic"]):
            starts(scene, scene.context.permit_admin.regroup("@family", members))
        assert len(store.commits) == 1
        scene.fires(store.pending[0])
        scene.fires(store.pending[1])
        assert scene.context.permits.groups.members("@family") == ("Ic",)

    def test_refused(self) -> None:
        """What can't be a group is refused, and the next one is not held up (I5)."""
        scene, store = at_once()
        refused = starts(scene, scene.context.permit_admin.regroup("family", ["Ia"]))
        assert errors(refused) == [GroupRefused]
        assert store.commits == []
        does(scene, scene.context.permit_admin.regroup("@family", ["Ia"]))

    def test_deleted(self) -> None:
        """A group that is deleted is off every list: one of its name later finds none (I2, I3)."""
        scene, store = at_once(accepts("@family"), groups=[self.FAMILY])
        scene.calls("a", "b")
        regroup = scene.context.permit_admin.regroup("@family", None)
        does(scene, regroup, a=terminate(), b=terminate())
        assert store.commits == [(PermitChange("Ib", ()), GroupChange("@family", None))]
        does(scene, scene.context.permit_admin.regroup("@family", ["Ia"]))
        scene.says("a", query("Ia", "Ib"), a=DENIED)


class ForgetTests:
    """An identifier, or a group, is taken out of everything."""

    GONE = AccountChange("Ia", None)

    @staticmethod
    def known(**options: Any) -> tuple[Scene, SlowStore]:
        """Ia is in a group and on two lists, and has a list of its own."""
        return stage(
            PermitChange("Ib", ("Ia", "Ic"), (("Ia", Limit(uses=9)),)),
            PermitChange("Ia", ("Ib",)),
            PermitChange("Ic", ("Ix", "Ia", "@family")),
            PermitChange("Id", ("Ib",)),
            groups=[GroupChange("@family", ("Ib", "Ia")), GroupChange("@work", ("Ib",))],
            **options,
        )

    def test_everywhere_in_one_commit(self) -> None:
        """Every list and group without it, its own list, and what goes with it: one commit (I9)."""
        scene, store = self.known()
        done = starts(scene, scene.context.permit_admin.forget("Ia", self.GONE))
        [changes] = store.commits
        assert sorted(changes, key=repr) == sorted(
            [
                accepts("Ic"),
                PermitChange("Ia", ()),
                PermitChange("Ic", ("Ix", "@family")),
                GroupChange("@family", ("Ib",)),
                self.GONE,
            ],
            key=repr,
        )
        assert scene.context.permits.table.accepted("Ia") == ("Ib",), "in force before it is kept"
        scene.fires(store.pending[0])
        assert done == [None]
        table = scene.context.permits.table
        assert [table.accepted(name) for name in ("Ia", "Ib", "Ic", "Id")] == [
            (),
            ("Ic",),
            ("Ix", "@family"),
            ("Ib",),
        ]
        assert scene.context.permits.groups.members("@family") == ("Ib",)

    def test_its_sessions(self) -> None:
        """All its sessions are void, as caller and as callee; those of others go on (I2)."""
        scene, store = self.known()
        store.at_once = True
        scene.calls("a", "b", "1")
        scene.on_line("a")
        scene.calls("b", "a", "2")
        scene.calls("c", "b", "3")
        told = terminate("1") + terminate("2")
        does(scene, scene.context.permit_admin.forget("Ia", self.GONE), a=told, b=told)
        assert len(scene.context.sessions) == 1

    def test_one_that_used_up_its_permit(self) -> None:
        """Also one that rests on no list any more (I2)."""
        scene, _ = at_once(accepts("Ia", uses=1))
        scene.calls("a", "b")
        does(scene, scene.context.permit_admin.forget("Ia"), a=terminate(), b=terminate())

    def test_store_fails(self) -> None:
        """Where it can't be kept nothing has changed, and nothing is held up (I5, I9)."""
        scene, store = self.known()
        done = starts(scene, scene.context.permit_admin.forget("Ia", self.GONE))
        scene.fires(store.pending[0], StoreFailed("no room"))
        assert errors(done) == [StoreFailed]
        assert scene.context.permits.table.accepted("Ic") == ("Ix", "Ia", "@family")
        assert scene.context.permits.groups.members("@family") == ("Ib", "Ia")
        store.at_once = True
        scene.says("b", register("Ib", "Accept:Add Ix"), b=DONE)
        does(scene, scene.context.permit_admin.forget("Ia", self.GONE))

    def test_nothing_known(self) -> None:
        """Who is nowhere is forgotten without a commit, but for what goes with it."""
        scene, store = at_once()
        does(scene, scene.context.permit_admin.forget("Ia"))
        assert store.commits == []
        does(scene, scene.context.permit_admin.forget("Ia", self.GONE))
        assert store.commits == [(self.GONE,)]

    def test_an_edit_under_way(self) -> None:
        """An edit that was asked for before is done before: it brings nobody back (I2, I9)."""
        scene, store = stage()
        scene.says("b", register("Ib", "Accept:Add Ia"))
        done = starts(scene, scene.context.permit_admin.forget("Ia"))
        scene.fires(store.pending[0], b=DONE)
        scene.fires(store.pending[1])
        assert done == [None]
        assert scene.context.permits.table.accepted("Ib") == ()

    def test_edits_wait(self) -> None:
        """An edit of a list concerned is worked out from what is left (I9)."""
        scene, store = self.known()
        starts(scene, scene.context.permit_admin.forget("Ia"))
        scene.says("b", register("Ib", "Accept:Add Id"))
        scene.fires(store.pending[0])
        scene.fires(store.pending[1], b=DONE)
        assert scene.context.permits.table.accepted("Ib") == ("Ic", "Id")

    def test_two_at_once(self) -> None:
        """Two that concern the same lists don't wait for each other, nor for a use (I24)."""
        scene, store = self.known()
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", CAN)
        both = [
            starts(scene, scene.context.permit_admin.forget(name)) for name in ("Ic", "Ib", "Ia")
        ]
        starts(scene, scene.context.permit_admin.regroup("@work", ["Ic"]))
        store.at_once = True
        told = to_callee("Ia") + terminate()
        scene.fires(store.pending[0], b=told, a=GRANTED + terminate())
        assert both == [[None]] * 3
        assert len(scene.context.permits.table) == 0

    def test_a_group(self) -> None:
        """A group goes from all lists; who is permitted otherwise goes on (I2)."""
        scene, store = at_once(
            PermitChange("Ib", ("@family", "Ic")),
            groups=[GroupChange("@family", ("Ia", "Ic"))],
        )
        scene.calls("a", "b")
        scene.calls("c", "b", "1")
        does(scene, scene.context.permit_admin.forget("@family"), a=terminate(), b=terminate())
        assert store.commits == [(accepts("Ic"), GroupChange("@family", None))]


class NamesTests:
    """A name stands for its identifier (C1)."""

    @staticmethod
    def named() -> tuple[Scene, SlowStore]:
        """Ib is also known as bob, and Ia as anna."""
        scene, store = at_once()
        known = {"bob": "Ib", "anna": "Ia"}
        scene.context.permits.canonical = lambda name: known.get(name, name)
        return scene, store

    def test_callee(self) -> None:
        """A callee may be asked for by name; the answer tells the identifier (C2)."""
        scene, store = self.named()
        scene.says("b", register("Ib", "Accept:Add Ia"), b=DONE)
        scene.says("a", query("Ia", "bob"), b=STATUS)
        scene.says("b", CAN, b=to_callee("Ia"), a=GRANTED)
        assert [told.owner for told in disclosed(scene, store)] == ["Ib"]

    def test_in_lists(self) -> None:
        """In a list a name is kept as its identifier, and deleted by either (C1)."""
        scene, store = self.named()
        scene.says("b", register("Ib", "Accept:Create anna;uses=2,Ic"), b=DONE)
        assert store.commits[-1][0] == PermitChange("Ib", ("Ia", "Ic"), (("Ia", Limit(uses=2)),))
        scene.says("b", ASK, b=permits("Create Ia;uses=2,Ic"))
        scene.calls("a", "b")
        told = register("Ib", "Accept:Delete anna")
        scene.says("b", told, a=terminate(), b=terminate() + DONE)

    def test_in_groups(self) -> None:
        """In a group, too."""
        scene, _ = self.named()
        does(scene, scene.context.permit_admin.regroup("@family", ["anna", "Ia", "Ic"]))
        assert scene.context.permits.groups.members("@family") == ("Ia", "Ic")

    def test_too_long(self) -> None:
        """A list is refused as before, with its limits counted (I15)."""
        scene, _ = self.named()
        names = [f"{n:03}" + "x" * 100 for n in range(9)]
        line = ",".join(f"{name};uses=1" for name in names[:8])
        scene.says("b", register("Ib", f"Accept:Create {line}"), b=DONE)
        many = [f"Add {','.join(f'{n}-{k}' for k in range(100))}" for n in range(10)]
        cause = "a list holds at most 1000 identifiers"
        scene.says("b", register("Ib", f"Accept:{many[0]}", *many[1:]), b=failed(cause))


class LogTests:
    """What the log says of lists (I19)."""

    def test_withdrawn(self, logged: Logged) -> None:
        """One line a change, however many go; names can't make a line of it."""
        scene, _ = at_once()
        names = ",".join(f"t{n}" for n in range(15))
        scene.says("b", register("Ib", f"Accept:Create {names}"), b=DONE)
        scene.says("b", register("Ib", "Accept:Create"), b=DONE)
        named = ", ".join(f"t{n}" for n in range(10))
        assert lines(logged) == [f"Ib has ceased to accept {named} and 5 more: withdrawn"]

    def test_refused_calls_leave_none(self, logged: Logged) -> None:
        """Who is refused fills no log (I15)."""
        scene, _ = at_once(accepts("Ia", until=TODAY - 1.0))
        before = len(logged.events)
        for _ in range(20):
            scene.says("a", query("Ia", "Ib"), a=DENIED)
        assert len(logged.events) == before


class TurnsTests:
    """One after the other."""

    def test_in_order(self) -> None:
        """Each has its turn, in the order in which they came; who only looks holds nobody up."""
        turns = KeyedLock()
        told: list[str] = []

        async def change(name: str) -> None:
            await turns.acquire("x")
            told.append(name)

        async def look(name: str) -> None:
            await turns.wait_idle("x")
            told.append(name)

        for steps in (change("1"), look("2"), change("3"), look("4"), change("5")):
            Deferred.fromCoroutine(steps)
        assert told == ["1"]
        turns.release("x")
        assert told == ["1", "2", "3"]
        turns.release("x")
        assert told == ["1", "2", "3", "4", "5"]
        turns.release("x")
        assert len(turns) == 0

    def test_who_gives_up(self) -> None:
        """Who no longer waits is passed over."""
        turns = KeyedLock()
        told: list[str] = []

        async def change(name: str) -> None:
            await turns.acquire("x")
            told.append(name)

        _, second, _ = [Deferred.fromCoroutine(change(name)) for name in "123"]
        second.addErrback(lambda failure: None)
        second.cancel()
        turns.release("x")
        assert told == ["1", "3"]

    def test_thousands_at_once(self) -> None:
        """However many have nothing to do when their turn comes, the stack doesn't grow (I24)."""
        turns = KeyedLock()
        done: list[int] = []

        async def change(n: int) -> None:
            await turns.acquire("x")
            done.append(n)
            turns.release("x")

        Deferred.fromCoroutine(turns.acquire("x"))
        for n in range(5000):
            Deferred.fromCoroutine(change(n))
        turns.release("x")
        assert done == list(range(5000))
        assert len(turns) == 0
