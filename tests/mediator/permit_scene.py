"""A scene around a store that does as the test says: lists and groups that change during calls."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from functools import partial
from operator import methodcaller
from typing import Any, Final

from twisted.python.failure import Failure

from broker.tables.disclosures import Disclosure
from broker.tables.groups import GroupChange
from broker.tables.permits import Limit, PermitChange
from tests.mediator.conftest import Logged
from tests.mediator.scene import (
    ACCEPTED,
    CAN,
    DONE,
    Scene,
    SlowStore,
    permits,
    register,
    terminate,
    to_caller,
)
from tests.mediator.steps import Step
from tests.support.clock import begun, settle

ASK: Final = "QUERY\nPERMITS\n\n"
GRANTED: Final = ACCEPTED + to_caller("Ib")
#: Ia's session with Ib is void, and both read it.
ENDED: Final = {"a": terminate(), "b": terminate()}


def accepts(*entries: str, **limit: Any) -> PermitChange:
    """Ib's list; a limit is that of its first entry."""
    limits = ((entries[0], Limit(**limit)),) if limit else ()
    return PermitChange("Ib", entries, limits)


def family(*members: str) -> GroupChange:
    """The group ``@family``."""
    return GroupChange("@family", members)


class PermitScene(Scene):
    """Ia, Ic, and Ib, which is on line and whose list this is about.

    :ivar store: keeps at once what it is given, unless ``at_once`` is false
    """

    def __init__(
        self,
        *lists: PermitChange,
        groups: Sequence[GroupChange] = (),
        at_once: bool = True,
        **options: Any,
    ) -> None:
        self.store = SlowStore(*lists, groups=groups)
        self.store.at_once = at_once
        super().__init__(store=self.store, **options)
        self.connect("a", "c")
        self.on_line("b")
        self.says("a", register("Ia"), a=DONE)
        self.says("c", register("Ic"), c=DONE)

    # Ib and its list.

    def edits(self, edit: str, **reads: str) -> None:
        """Ib edits its list, which is kept at once."""
        self.says("b", register("Ib", f"Accept:{edit}"), **{"b": DONE, **reads})

    def begins_edit(self, edit: str) -> None:
        """Ib edits its list; the store takes its time."""
        self.says("b", register("Ib", f"Accept:{edit}"))

    def lists(self, edit: str) -> None:
        """Ib reads its own list."""
        self.says("b", ASK, b=permits(edit))

    def accepted(self, owner: str = "Ib") -> tuple[str, ...]:
        """A list in force."""
        return self.context.permits.table.accepted(owner)

    # Ia calls Ib.

    def decides(self) -> None:
        """Ia calls, and Ib can take the call; then something has to be kept."""
        self.asks()
        self.says("b", CAN)

    # The store.

    def stored(self, number: int, error: Exception | None = None, **reads: str) -> None:
        """A commit, counted from the first that was not kept at once, is done, or fails."""
        self.fires(self.store.pending[number], error, **reads)

    def commits(self, *changes: PermitChange | GroupChange) -> None:
        """These were committed, each by itself, and nothing else."""
        assert self.store.commits == [(change,) for change in changes]

    def restarted(self, **options: Any) -> Scene:
        """A mediator that begins with what the store has kept; Ia and Ib are there."""
        self.store.pending.clear()
        scene = Scene(store=self.store, **options)
        scene.connect("a")
        scene.on_line("b")
        scene.says("a", register("Ia"), a=DONE)
        return scene

    def disclosed(self) -> list[Disclosure]:
        """The disclosures in the store, once none waits to be written."""
        self.broker.advance(1)
        return self.store.told

    # The operator.

    def starts(self, steps: Coroutine[Any, Any, None]) -> list[Any]:
        """Begin an act of the operator; give its outcome, once there is one."""
        outcome = begun(steps)
        settle(self.clock)
        return outcome

    def does(self, steps: Coroutine[Any, Any, None], **reads: str) -> None:
        """An act of the operator is done at once, and others read something."""
        assert self.starts(steps) == [None]
        self.reads(**reads)

    def begins_regroup(self, *members: str, name: str = "@family") -> list[Any]:
        """The operator makes or changes a group; the store takes its time."""
        return self.starts(self.context.permit_admin.regroup(name, members))

    def regroups(self, *members: str, **reads: str) -> None:
        """The operator makes or changes ``@family``."""
        self.does(self.context.permit_admin.regroup("@family", members), **reads)

    def forgets(self, entry: str, *more: Any, **reads: str) -> None:
        """The operator has an identifier or a group forgotten."""
        self.does(self.context.permit_admin.forget(entry, *more), **reads)


def errors(outcome: list[Any]) -> list[type[BaseException] | None]:
    """What went wrong."""
    return [result.type for result in outcome if isinstance(result, Failure)]


def revocations(logged: Logged) -> list[str]:
    """What the log says of entries that lists have lost."""
    return [text.rpartition("] ")[2] for text in logged.texts() if "has ceased to accept" in text]


# Steps of a ``PermitScene``, for tables.

edits: Final = partial(methodcaller, "edits")
begins_edit: Final = partial(methodcaller, "begins_edit")
lists: Final = partial(methodcaller, "lists")
stored: Final = partial(methodcaller, "stored")
commits: Final = partial(methodcaller, "commits")
regroups: Final = partial(methodcaller, "regroups")
forgets: Final = partial(methodcaller, "forgets")
ASKS: Final[Step] = methodcaller("asks")
DECIDES: Final[Step] = methodcaller("decides")


def at_once(scene: Scene) -> None:
    """From now on the store keeps at once what it is given."""
    store: Any = scene.broker.store
    store.at_once = True


def based_on(*entries: str) -> Step:
    """The disclosures were permitted by these entries."""

    def step(scene: Scene) -> None:
        assert isinstance(scene, PermitScene)
        assert [record.basis for record in scene.disclosed()] == list(entries)

    return step
