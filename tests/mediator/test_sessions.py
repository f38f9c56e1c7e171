"""The sessions that rest on a permit: replaced, begun, ended, terminated (mediator.sessions)."""

from __future__ import annotations

from typing import Final

import pytest

from broker.tables.permits import PermitChange
from tests.mediator.scene import (
    ACCEPTED,
    DENIED,
    DONE,
    TOO_MANY,
    Scene,
    begin,
    end,
    query,
    register,
    terminate,
    to_callee,
    to_caller,
    with_store,
)
from tests.mediator.steps import (
    FORGET,
    Step,
    calls,
    connect,
    holds,
    leaves,
    on_line,
    passes,
    play,
    registers,
    says,
    sessions,
)

NO_MORE: Final = register("Ib", "Accept:Delete Ia")
BEGIN: Final = begin("{session}")
END: Final = end("{session}")
FAILED: Final = end("{session}", "Failed")
BEGINS: Final = says("b", BEGIN)
#: The permit is withdrawn: both sides are told that the session is void, before the answer.
WITHDRAWN: Final = says("b", NO_MORE, a=terminate(), b=terminate() + DONE)
#: The same, with no session that it ends.
NOTHING_TO_END: Final = registers("b", "Accept:Delete Ia")
ALL_THREE: Final = terminate() + terminate("1") + terminate("2")


def in_a_call() -> Scene:
    """Ia has been given a session with Ib; Ic is connected."""
    scene = Scene()
    scene.connect("a", "c")
    scene.on_line("b", "Accept:Create Ia")
    scene.registers("c")
    scene.calls("a", "b")
    return scene


def fifteen_more(scene: Scene) -> None:
    """Ia has been given sessions with others."""
    for n in range(15):
        scene.context.sessions.granted(f"S{n}", "Ia", f"I{n}", "")


def undelivered(there: bool) -> Step:
    """Whether the end of a session waits for a terminal to come back."""
    return holds(lambda scene: ("Sessions._undelivered" in scene.kept()) == there)


def caller_away(seconds: int, told: str) -> list[Step]:
    """The caller is away when its begun session is ended, and comes back later."""
    return [
        BEGINS, leaves("a"), says("b", NO_MORE, b=terminate() + DONE), passes(seconds),
        undelivered(bool(told)), connect("a"), registers("a", "Address:127.0.0.1", a=told + DONE),
        registers("a", "Address:127.0.0.1"),
    ]  # fmt: skip


ONE_TOO_MANY: Final = says("a", query("Ia", "Id"), a=TOO_MANY)

#: What becomes of a session that Ia has just been given with Ib.
# fmt: off
AFTERWARDS: Final[dict[str, list[Step]]] = {
    # A permit that is withdrawn ends the sessions that rest on it, and no other (I2).
    "others stay": [
        registers("b", "Accept:Add Ic"), on_line("a", "Accept:Create Ib"),
        calls("b", "a", "1"), calls("c", "b", "2"), WITHDRAWN, sessions(2),
    ],
    # Several begun, and one unspent.
    "all of the pair end": [
        BEGINS, calls("a", "b", "1"), says("b", begin("{session1}")), calls("a", "b", "2"),
        says("b", NO_MORE, a=ALL_THREE, b=ALL_THREE + DONE),
    ],
    # Any of them may be the one that talks.
    "every connection of both sides is told": [
        connect("a2", "b2"), registers("a2"), registers("b2"),
        says("b2", NO_MORE, a=terminate(), a2=terminate(), b=terminate(), b2=terminate() + DONE),
    ],
    # No later request succeeds once the withdrawal is acknowledged (I2).
    "a request after the withdrawal": [WITHDRAWN, says("a", query("Ia", "Ib"), a=DENIED)],
    # A caller that is away hears of it when it is back, as long as a session can last (I2, I15).
    "the caller is away": caller_away(0, terminate()),
    "the caller is long away": caller_away(3599, terminate()),
    "the caller is away for too long": caller_away(3600, ""),
    # It can't begin now.
    "the caller of an unspent one is away": [
        leaves("a"), says("b", NO_MORE, b=terminate() + DONE), undelivered(False),
    ],
    # An unspent session lasts 30 s, a begun one an hour; then it is forgotten (I7, I15).
    "unspent": [passes(29.9), sessions(1), passes(0.1), sessions(0), NOTHING_TO_END],
    "begun": [BEGINS, passes(3599.9), sessions(1), passes(0.1), sessions(0), NOTHING_TO_END],
    # A callee that says so too late is told to end it (I2, I7).
    "begun too late": [passes(30), says("b", BEGIN, b=terminate())],
    "begun while it is withdrawn": [WITHDRAWN, says("b", BEGIN, b=terminate())],
    # The callee's word ends it: a later withdrawal has nothing to end.
    **{
        f"ended by the callee as {how}": [
            BEGINS, says("b", end("{session}", how)), sessions(0), NOTHING_TO_END,
        ]
        for how in ("Completed", "Expired", "Terminated", "Failed")
    },
    # It is told to its caller, which need not wait (D7).
    "ended by the callee before it began": [
        connect("a2"), registers("a2"),
        says("b", FAILED, a=terminate(how="Failed"), a2=terminate(how="Failed")),
        sessions(0), says("b", FAILED),
    ],
    # The caller's word alone does not end it: a withdrawal could not end it then (I2).
    "unspent, ended by the caller": [says("a", END), WITHDRAWN],
    "begun, ended by the caller": [BEGINS, says("a", END), WITHDRAWN],
    "reported over another connection": [
        connect("b2"), registers("b2"), says("b2", BEGIN), says("b2", END), sessions(0),
    ],
    # No other terminal begins or ends a session, nor does the caller begin it (I4, I5).
    "reported by others": [
        connect("d"), says("c", BEGIN, c=terminate()), says("a", BEGIN, a=terminate()),
        says("c", END), says("d", BEGIN), says("d", END),
        passes(29.9), sessions(1), passes(0.1), sessions(0),
    ],
    # A session that is not theirs is for others like one that never was (I6).
    "asked about by others": [
        says("c", begin("S0"), c="NOTIFY\nSession:S0\nTerminate.\n\n"),
        says("c", BEGIN, c=terminate()), says("c", end("S0")), says("c", END),
    ],
    # Other words about a session do nothing, malformed ones neither; none is answered (I5).
    "nonsense": [
        *(
            says(name, f"NOTIFY\n{text}\n\n")
            for text in (
                "Session:{session}", "Session:{session}\nTerminate.",
                "Session:{session}\nEnd:Somehow", "Session:?\nBegin.",
            )
            for name in "abc"
        ),
        sessions(1),
    ],
    # A new session of a pair replaces the unspent one, which can't begin then (I7, I15).
    "replaced": [
        calls("a", "b", "1"), sessions(1), says("b", BEGIN, b=terminate()),
        says("b", NO_MORE, a=terminate("1"), b=terminate("1") + DONE),
    ],
    # A caller has at most sixteen unspent sessions; then it is told so, and the callee is not even
    # asked. A pair that has one may replace it; other callers don't count; one that begins or ends
    # makes room (I15, I16).
    "sixteen of a caller": [
        fifteen_more,
        on_line("d", "Accept:Create Ia,Ic"), ONE_TOO_MANY,
        says("a", query("Ia", "Id", "Transaction:1"),
             a="NOTIFY\nToo Many Requests.\nTransaction:1\nCode:429\n\n"),
        calls("c", "d", "1"), calls("a", "b", "2"), ONE_TOO_MANY,
        says("b", begin("{session2}")), calls("a", "d", "3"), calls("a", "d", "4"),
        says("a", query("Ia", "Ib"), a=TOO_MANY), passes(30), calls("a", "b", "5"),
    ],
}
# fmt: on


@pytest.mark.parametrize("case", AFTERWARDS)
def test_when_a_session_was_granted_then_it_ends_as_its_row_says(case: str) -> None:
    """Withdrawn, begun, ended, replaced, expired: what each side reads, and what is left."""
    play(in_a_call(), *AFTERWARDS[case])


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    ("edits", "over"),
    [
        *((edits, True) for edits in ("Delete Ia", "Create", "Create Ic", "Delete Ia\nAdd Ic")),
        *((edits, False) for edits in ("Add Ic", "Create Ia", "Delete Ia\nAdd Ia", "Delete Ic")),
    ],
)
def test_when_a_list_is_edited_then_what_rests_on_the_permit_ends(
    edits: str, over: bool, begun: bool
) -> None:
    """Both sides are told that the session is void, before the withdrawal is answered (I2)."""
    scene = in_a_call()
    if begun:
        play(scene, BEGINS)
    told = {"a": terminate(), "b": terminate() + DONE} if over else {}
    play(scene, registers("b", f"Accept:{edits}", **told), sessions(int(not over)))


class StoredTests:
    """A withdrawal that the store takes its time to keep."""

    @pytest.mark.parametrize("granted", ["before", "while it is stored"])
    def test_once_durable(self, granted: str) -> None:
        """A session is void once the withdrawal is kept, not before; a new one with it (I2, I8)."""
        scene, store = with_store(PermitChange("Ib", ("Ia",)))
        steps = [calls("a", "b"), says("b", NO_MORE)]
        play(scene, connect("a"), on_line("b"), *steps[:: 1 if granted == "before" else -1])
        scene.fires(store.pending[0], b=terminate() + DONE, a=terminate())

    def test_the_callee_was_away(self) -> None:
        """A callee that is away hears of it when it is back with an address; once (I2).

        It withdraws over a connection that closes before the store has kept the change.
        """
        scene, store = with_store(PermitChange("Ib", ("Ia",)))
        play(scene, connect("a"), on_line("b"), calls("a", "b"), says("b", BEGIN + NO_MORE))
        scene.leaves("b")
        scene.fires(store.pending[0], a=terminate())
        play(scene, connect("b"), registers("b"))
        scene.registers("b", "Address:127.0.0.1", b=terminate() + DONE)
        scene.registers("b", "Address:127.0.0.1")


class BoundsTests:
    """How many there are (I15)."""

    def test_sixteen_at_once(self) -> None:
        """The bound holds for calls that are decided at the same time, too (I15)."""
        scene = Scene()
        scene.connect("a")
        scene.registers("a")
        for n in range(18):
            lines = ("Accept:Create Ia", "Address:127.0.0.1")
            scene.new_says(f"b{n}", register(f"Ib{n}", *lines), DONE)
        for n in range(18):
            scene.clients["a"].type(query("Ia", f"Ib{n}", f"Transaction:{n}"))
        for n in range(18):
            scene.clients[f"b{n}"].type("NOTIFY\nSTATUS Acceptable.\n\n")
        codes = [message.get("Code") for message in scene.clients["a"].received()]
        assert codes == ["100", "200"] * 16 + ["429", "429"]
        assert len(scene.context.sessions) == 16
        for n in range(18):
            first, *more = scene.clients[f"b{n}"].received()
            assert (first.statement, len(more)) == ("STATUS", n < 16)

    def test_begun_a_callee(self) -> None:
        """A callee has at most a thousand begun ones; one more is terminated at once (I15)."""
        scene = Scene(ask_status=False)
        play(scene, connect("a"), on_line("b", "Accept:Create Ia"))
        call = says("a", query("Ia", "Ib"), a=ACCEPTED + to_caller("Ib"), b=to_callee("Ia"))
        play(scene, *1000 * [FORGET, call, BEGINS], FORGET, call)
        play(scene, says("b", BEGIN, a=terminate(), b=terminate()), sessions(1000))
