"""Groups and names in lists, and what is forgotten (broker.mediator.permit_admin)."""

from __future__ import annotations

from typing import Any, Final

import pytest

from broker.interfaces import StoreFailed
from broker.tables.accounts import AccountChange
from broker.tables.groups import GroupChange, GroupRefused
from broker.tables.permits import Limit, PermitChange
from tests.mediator.permit_scene import (
    ASKS,
    DECIDES,
    ENDED,
    GRANTED,
    PermitScene,
    accepts,
    based_on,
    edits,
    errors,
    family,
    forgets,
    lists,
    regroups,
    stored,
)
from tests.mediator.scene import (
    CAN,
    DENIED,
    DONE,
    bad,
    begin,
    failed,
    query,
    register,
    terminate,
    to_callee,
)
from tests.mediator.steps import Step, calls, connect, play, says, sessions

REFUSED: Final = says("a", query("Ia", "Ib"), a=DENIED)
BOTH: Final = terminate() + terminate("1")
#: How an edit that ends Ia's session is answered.
ENDING: Final = {"a": terminate(), "b": terminate() + DONE}
NO_ROOM: Final = StoreFailed("no room")

#: Ia and Ic are in ``@family``, and Ib's list is as given.
# fmt: off
GROUPS: Final[dict[str, tuple[PermitChange, list[Step]]]] = {
    # Only members are permitted, and the callee's list does not name them.
    "members": (
        accepts("@family"),
        [
            regroups("Ia"), calls("a", "b"), says("c", query("Ic", "Ib"), c=DENIED),
            based_on("@family"), regroups("Ia", "Ic"), calls("c", "b", "1"),
        ],
    ),
    # A group that is not there permits no caller, and counts from when it is (I3).
    "made after it is named": (
        accepts(),
        [forgets("@family"), edits("Add @family"), REFUSED, regroups("Ia"), calls("a", "b")],
    ),
    # No terminal is called as a group is (I4).
    "its name as an identifier": (
        accepts("@family"),
        [
            connect("x"),
            says("x", query("@family", "Ib"), x=bad("Identifier: an identifier begins with @")),
        ],
    ),
    # A membership withdrawn while the status is asked: 5c (I1, I2).
    "left while asked": (accepts("@family"), [ASKS, regroups("Ic"), says("b", CAN, a=DENIED)]),
    # Only the sessions of those who leave end (I2).
    "left": (
        accepts("@family"),
        [calls("a", "b"), calls("c", "b", "1"), regroups("Ic", **ENDED), sessions(1)],
    ),
    # A call that rests on an entry that is used up ends with the membership, too (I2).
    "left, and used up": (accepts("@family", uses=1), [calls("a", "b"), regroups(**ENDED)]),
    # Who is permitted by name as well goes on until that is withdrawn, too (I2).
    "left, and by name": (
        accepts("Ia", "@family"), [calls("a", "b"), regroups(), edits("Delete Ia", **ENDING)],
    ),
    "by name, and left": (
        accepts("Ia", "@family"), [calls("a", "b"), edits("Delete Ia"), regroups("Ic", **ENDED)],
    ),
    # A group that is taken off a list takes its members' sessions there with it (I2).
    "off the list": (
        accepts("@family"),
        [
            calls("a", "b"), calls("c", "b", "1"),
            edits("Delete @family\nAdd Id", a=terminate(), c=terminate("1"), b=BOTH + DONE),
        ],
    ),
    # A group that is deleted is off every list: one of its name later finds none (I2, I3).
    "deleted": (
        accepts("@family"), [calls("a", "b"), forgets("@family", **ENDED), regroups("Ia"), REFUSED],
    ),
}
# fmt: on


class GroupsTests:
    """An entry that names a group (A18)."""

    @pytest.mark.parametrize("case", GROUPS)
    def test_when_a_group_changes_then_its_members_are_permitted_or_not(self, case: str) -> None:
        """From then on, and what rested on their membership ends (A18, I1–I4)."""
        permit, steps = GROUPS[case]
        play(PermitScene(permit, groups=[family("Ia", "Ic")]), *steps)

    def test_when_a_member_leaves_then_its_begun_session_ends_too(self) -> None:
        """As one that is unspent (I2)."""
        scene = PermitScene(accepts("@family"), groups=[family("Ia", "Ic")])
        scene.says("b", begin(scene.calls("a", "b")))
        scene.regroups("Ic", **ENDED)

    def test_when_a_group_is_being_kept_then_it_is_as_before(self) -> None:
        """So it stays if the store fails (I5, I8)."""
        scene = PermitScene(accepts("@family"), groups=[family("Ia", "Ic")], at_once=False)
        scene.calls("a", "b")
        done = scene.begins_regroup()
        scene.stored(0, NO_ROOM)
        assert errors(done) == [StoreFailed]
        scene.calls("a", "b", "1")
        done = scene.begins_regroup("Ic")
        scene.calls("a", "b", "2")
        assert done == []
        play(scene, stored(1, a=terminate("2"), b=terminate("2")))
        assert done == [None]
        assert scene.store.commits[1] == (family("Ic"),)
        play(scene.restarted(), REFUSED)

    def test_when_two_changes_are_asked_for_then_they_are_made_in_order(self) -> None:
        """One at a time (I9)."""
        scene = PermitScene(accepts("@family"), at_once=False)
        scene.begins_regroup("Ia")
        scene.begins_regroup("Ic")
        assert len(scene.store.commits) == 1
        play(scene, stored(0), stored(1))
        assert scene.context.permits.groups.members("@family") == ("Ic",)

    def test_when_a_group_is_refused_then_the_next_is_not_held_up(self) -> None:
        """Nothing of it is kept (I5)."""
        scene = PermitScene()
        assert errors(scene.begins_regroup("Ia", name="family")) == [GroupRefused]
        scene.commits()
        scene.regroups("Ia")

    def test_when_a_group_is_deleted_then_it_is_off_all_lists_in_one_commit(self) -> None:
        """``regroup`` without members forgets it (I9)."""
        scene = PermitScene(accepts("@family"), groups=[family("Ia", "Ic")])
        scene.does(scene.context.permit_admin.regroup("@family", None))
        assert scene.store.commits == [(accepts(), GroupChange("@family", None))]


class ForgetTests:
    """An identifier, or a group, is taken out of everything."""

    GONE = AccountChange("Ia", None)

    @staticmethod
    def known() -> PermitScene:
        """Ia is in a group and on two lists, and has a list of its own."""
        return PermitScene(
            accepts("Ia", "Ic", uses=9),
            PermitChange("Ia", ("Ib",)),
            PermitChange("Ic", ("Ix", "Ia", "@family")),
            PermitChange("Id", ("Ib",)),
            groups=[family("Ib", "Ia"), GroupChange("@work", ("Ib",))],
            at_once=False,
        )

    def forget(self, scene: PermitScene, entry: str, *more: Any) -> list[Any]:
        """Begin it; the store takes its time."""
        return scene.starts(scene.context.permit_admin.forget(entry, *more))

    def test_when_one_is_forgotten_then_all_is_one_commit(self) -> None:
        """Every list and group without it, its own list, and what goes with it (I9)."""
        scene = self.known()
        done = self.forget(scene, "Ia", self.GONE)
        [changes] = scene.store.commits
        expected = [
            accepts("Ic"),
            PermitChange("Ia", ()),
            PermitChange("Ic", ("Ix", "@family")),
            family("Ib"),
            self.GONE,
        ]
        assert sorted(changes, key=repr) == sorted(expected, key=repr)
        assert scene.accepted("Ia") == ("Ib",), "in force before it is kept"
        scene.stored(0)
        assert done == [None]
        after = {"Ia": (), "Ib": ("Ic",), "Ic": ("Ix", "@family"), "Id": ("Ib",)}
        assert {name: scene.accepted(name) for name in after} == after
        assert scene.context.permits.groups.members("@family") == ("Ib",)

    def test_when_one_is_forgotten_then_all_its_sessions_are_void(self) -> None:
        """As caller and as callee; those of others go on (I2)."""
        scene = self.known()
        scene.store.at_once = True
        scene.calls("a", "b", "1")
        scene.on_line("a")
        scene.calls("b", "a", "2")
        scene.calls("c", "b", "3")
        ended = terminate("1") + terminate("2")
        play(scene, forgets("Ia", self.GONE, a=ended, b=ended), sessions(1))

    def test_when_its_permit_is_used_up_then_its_session_is_void_too(self) -> None:
        """Though it rests on no list now (I2)."""
        play(PermitScene(accepts("Ia", uses=1)), calls("a", "b"), forgets("Ia", **ENDED))

    def test_when_the_store_fails_then_nothing_has_changed(self) -> None:
        """Nothing is held up either (I5, I9)."""
        scene = self.known()
        done = self.forget(scene, "Ia", self.GONE)
        scene.stored(0, NO_ROOM)
        assert errors(done) == [StoreFailed]
        assert scene.accepted("Ic") == ("Ix", "Ia", "@family")
        assert scene.context.permits.groups.members("@family") == ("Ib", "Ia")
        scene.store.at_once = True
        play(scene, edits("Add Ix"), forgets("Ia", self.GONE))

    def test_when_nothing_is_known_of_it_then_nothing_is_committed(self) -> None:
        """But what goes with it."""
        scene = PermitScene()
        scene.forgets("Ia")
        scene.commits()
        scene.forgets("Ia", self.GONE)
        assert scene.store.commits == [(self.GONE,)]

    def test_when_an_edit_is_being_kept_then_it_is_done_before(self) -> None:
        """It brings no entry back (I2, I9)."""
        scene = PermitScene(at_once=False)
        scene.begins_edit("Add Ia")
        done = self.forget(scene, "Ia")
        play(scene, stored(0, b=DONE), stored(1))
        assert done == [None]
        assert scene.accepted() == ()

    def test_when_a_list_is_edited_then_that_waits(self) -> None:
        """It is worked out from what is left (I9)."""
        scene = self.known()
        self.forget(scene, "Ia")
        scene.begins_edit("Add Id")
        play(scene, stored(0), stored(1, b=DONE))
        assert scene.accepted() == ("Ic", "Id")

    def test_when_several_concern_the_same_lists_then_none_waits_for_ever(self) -> None:
        """Nor for a use that is being kept (I24)."""
        scene = self.known()
        play(scene, DECIDES)
        outcomes = [self.forget(scene, name) for name in ("Ic", "Ib", "Ia")]
        scene.begins_regroup("Ic", name="@work")
        scene.store.at_once = True
        told = to_callee("Ia") + terminate()
        play(scene, stored(0, b=told, a=GRANTED + terminate()))
        assert outcomes == [[None]] * 3
        assert len(scene.context.permits.table) == 0

    def test_when_a_group_is_forgotten_then_others_on_the_list_go_on(self) -> None:
        """Who is permitted otherwise keeps its session (I2)."""
        scene = PermitScene(accepts("@family", "Ic"), groups=[family("Ia", "Ic")])
        play(scene, calls("a", "b"), calls("c", "b", "1"), forgets("@family", **ENDED))
        assert scene.store.commits == [(accepts("Ic"), GroupChange("@family", None))]


class NamesTests:
    """A name stands for its identifier (C1)."""

    @staticmethod
    def named() -> PermitScene:
        """Ib is also called bob, and Ia anna."""
        scene = PermitScene()
        known = {"bob": "Ib", "anna": "Ia"}
        scene.context.permits.canonical = lambda name: known.get(name, name)
        return scene

    def test_when_a_callee_is_called_by_a_name_then_the_answer_has_its_identifier(self) -> None:
        """As has the record of what was told (C2)."""
        scene = self.named()
        play(scene, edits("Add Ia"), says("a", query("Ia", "bob"), b="QUERY\nSTATUS\n\n"))
        scene.says("b", CAN, b=to_callee("Ia"), a=GRANTED)
        assert [record.owner for record in scene.disclosed()] == ["Ib"]

    def test_when_a_list_names_a_name_then_its_identifier_is_kept(self) -> None:
        """And deleted by either (C1)."""
        scene = self.named()
        scene.edits("Create anna;uses=2,Ic")
        limits = (("Ia", Limit(uses=2)),)
        assert scene.store.commits[-1][0] == PermitChange("Ib", ("Ia", "Ic"), limits)
        play(scene, lists("Create Ia;uses=2,Ic"), calls("a", "b"), edits("Delete anna", **ENDING))

    def test_when_a_group_names_a_name_then_its_identifier_is_a_member(self) -> None:
        """Once."""
        scene = self.named()
        scene.regroups("anna", "Ia", "Ic")
        assert scene.context.permits.groups.members("@family") == ("Ia", "Ic")

    def test_when_a_list_is_too_long_then_it_is_refused(self) -> None:
        """With its limits counted (I15)."""
        scene = self.named()
        names = [f"{n:03}" + "x" * 100 for n in range(8)]
        scene.edits("Create " + ",".join(f"{name};uses=1" for name in names))
        many = [f"Add {','.join(f'{n}-{k}' for k in range(100))}" for n in range(10)]
        cause = "a list holds at most 1000 identifiers"
        scene.says("b", register("Ib", f"Accept:{many[0]}", *many[1:]), b=failed(cause))
