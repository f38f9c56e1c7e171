"""The sessions that rest on a permit: replaced, begun, ended, terminated (mediator.sessions)."""

from __future__ import annotations

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

NO_MORE = register("Ib", "Accept:Delete Ia")


def in_a_call() -> tuple[Scene, str]:
    """Ia has been given a session with Ib; Ic is connected."""
    scene = Scene()
    scene.connect("a", "c")
    scene.on_line("b", "Accept:Create Ia")
    scene.says("c", register("Ic"), c=DONE)
    return scene, scene.calls("a", "b")


class WithdrawnTests:
    """A permit that is withdrawn ends the sessions that rest on it (I2)."""

    @pytest.mark.parametrize("edits", ["Delete Ia", "Create", "Create Ic", "Delete Ia\nAdd Ic"])
    @pytest.mark.parametrize("begun", [False, True])
    def test_voids(self, edits: str, begun: bool) -> None:
        """Both sides are told that the session is void, before the withdrawal is answered (I2)."""
        scene, session = in_a_call()
        if begun:
            scene.says("b", begin(session))
        scene.says("b", register("Ib", f"Accept:{edits}"), b=terminate() + DONE, a=terminate())
        assert len(scene.context.sessions) == 0

    @pytest.mark.parametrize("edits", ["Add Ic", "Create Ia", "Delete Ia\nAdd Ia", "Delete Ic"])
    def test_stays(self, edits: str) -> None:
        """What does not withdraw this permit leaves the session."""
        scene, _ = in_a_call()
        scene.says("b", register("Ib", f"Accept:{edits}"), b=DONE)
        assert len(scene.context.sessions) == 1

    def test_others_stay(self) -> None:
        """Another caller's session, and the one the other way round, stay."""
        scene, _ = in_a_call()
        scene.says("b", register("Ib", "Accept:Add Ic"), b=DONE)
        scene.on_line("a", "Accept:Create Ib")
        scene.calls("b", "a", "1")
        scene.calls("c", "b", "2")
        scene.says("b", NO_MORE, b=terminate() + DONE, a=terminate())
        assert len(scene.context.sessions) == 2

    def test_all_of_the_pair(self) -> None:
        """All sessions of the pair are void: several begun, and one unspent."""
        scene, session = in_a_call()
        scene.says("b", begin(session))
        scene.says("b", begin(scene.calls("a", "b", "1")))
        scene.calls("a", "b", "2")
        told = terminate() + terminate("1") + terminate("2")
        scene.says("b", NO_MORE, b=told + DONE, a=told)

    def test_all_connections(self) -> None:
        """Every connection of both sides is told: any of them may be the one that talks."""
        scene, _ = in_a_call()
        scene.new_says("a2", register("Ia"), DONE)
        scene.new_says("b2", register("Ib"), DONE)
        told = {name: terminate() for name in ("a", "a2", "b")}
        scene.says("b2", NO_MORE, **told, b2=terminate() + DONE)

    @pytest.mark.parametrize("granted", ["before", "while it is stored"])
    def test_once_durable(self, granted: str) -> None:
        """A session is void once the withdrawal is kept, not before; a new one with it (I2, I8)."""
        scene, store = with_store(PermitChange("Ib", ("Ia",)))
        scene.connect("a")
        scene.on_line("b")
        if granted == "before":
            scene.calls("a", "b")
            scene.says("b", NO_MORE)
        else:
            scene.says("b", NO_MORE)
            scene.calls("a", "b")
        scene.fires(store.pending[0], b=terminate() + DONE, a=terminate())

    def test_no_later_request(self) -> None:
        """Once the withdrawal is acknowledged no later request succeeds (I2)."""
        scene, _ = in_a_call()
        scene.says("b", NO_MORE, b=terminate() + DONE, a=terminate())
        scene.says("a", query("Ia", "Ib"), a=DENIED)

    def test_the_callee_was_away(self) -> None:
        """A callee that is away hears of it when it is back with an address; once (I2).

        It withdraws over a connection that closes before the store has kept the change.
        """
        scene, store = with_store(PermitChange("Ib", ("Ia",)))
        scene.connect("a")
        scene.on_line("b")
        scene.says("b", begin(scene.calls("a", "b")) + NO_MORE)
        scene.leaves("b")
        scene.fires(store.pending[0], a=terminate())
        scene.connect("b")
        scene.says("b", register("Ib"), b=DONE)
        scene.says("b", register("Ib", "Address:127.0.0.1"), b=terminate() + DONE)
        scene.says("b", register("Ib", "Address:127.0.0.1"), b=DONE)

    @pytest.mark.parametrize("away", [0, 3599, 3600])
    def test_the_caller_was_away(self, away: int) -> None:
        """So does a caller, for as long as a session can last (I2, I15)."""
        scene, session = in_a_call()
        scene.says("b", begin(session))
        scene.leaves("a")
        scene.says("b", NO_MORE, b=terminate() + DONE)
        scene.passes(away)
        assert ("Sessions._undelivered" in scene.kept()) == (away < 3600)
        scene.connect("a")
        told = terminate() if away < 3600 else ""
        scene.says("a", register("Ia", "Address:127.0.0.1"), a=told + DONE)
        scene.says("a", register("Ia", "Address:127.0.0.1"), a=DONE)

    def test_not_kept_for_an_unspent_one(self) -> None:
        """That of an unspent session is not kept: the session can't begin now."""
        scene, _ = in_a_call()
        scene.leaves("a")
        scene.says("b", NO_MORE, b=terminate() + DONE)
        assert "Sessions._undelivered" not in scene.kept()


class ReportsTests:
    """What the sides say of their session."""

    @pytest.mark.parametrize(("begun", "lasts"), [(False, 30), (True, 3600)])
    def test_lasts(self, begun: bool, lasts: int) -> None:
        """An unspent session lasts 30 s, a begun one an hour; then it is forgotten (I7, I15)."""
        scene, session = in_a_call()
        if begun:
            scene.says("b", begin(session))
        scene.passes(lasts - 0.1)
        assert len(scene.context.sessions) == 1
        scene.passes(0.1)
        assert len(scene.context.sessions) == 0
        scene.says("b", NO_MORE, b=DONE)

    def test_begin_too_late(self) -> None:
        """A callee that says so too late is told to end it (I2, I7)."""
        scene, session = in_a_call()
        scene.passes(30)
        scene.says("b", begin(session), b=terminate())

    def test_begin_crosses_a_withdrawal(self) -> None:
        """A call that began while its permit was withdrawn is ended (I2)."""
        scene, session = in_a_call()
        scene.says("b", NO_MORE, b=terminate() + DONE, a=terminate())
        scene.says("b", begin(session), b=terminate())

    def test_end_by_the_callee(self) -> None:
        """The callee's word ends it: a later withdrawal has nothing to end."""
        for how in ("Completed", "Expired", "Terminated", "Failed"):
            scene, session = in_a_call()
            scene.says("b", begin(session))
            scene.says("b", end(session, how))
            assert len(scene.context.sessions) == 0
            scene.says("b", NO_MORE, b=DONE)

    def test_end_before_it_began(self) -> None:
        """A callee's end of what has not begun is told to its caller, which need not wait (D7)."""
        scene, session = in_a_call()
        scene.new_says("a2", register("Ia"), DONE)
        told = terminate(how="Failed")
        scene.says("b", end(session, "Failed"), a=told, a2=told)
        assert len(scene.context.sessions) == 0
        scene.says("b", end(session, "Failed"))

    @pytest.mark.parametrize("begun", [False, True])
    def test_end_by_the_caller(self, begun: bool) -> None:
        """The caller's word alone does not: a withdrawal could not end it then (I2)."""
        scene, session = in_a_call()
        if begun:
            scene.says("b", begin(session))
        scene.says("a", end(session))
        scene.says("b", NO_MORE, b=terminate() + DONE, a=terminate())

    def test_over_another_connection(self) -> None:
        """A side may report over any connection of its own."""
        scene, session = in_a_call()
        scene.new_says("b2", register("Ib"), DONE)
        scene.says("b2", begin(session))
        scene.says("b2", end(session))
        assert len(scene.context.sessions) == 0

    def test_not_by_others(self) -> None:
        """No other terminal begins or ends a session, nor does the caller begin it (I4, I5)."""
        scene, session = in_a_call()
        scene.connect("d")
        scene.says("c", begin(session), c=terminate())
        scene.says("a", begin(session), a=terminate())
        scene.says("c", end(session))
        scene.says("d", begin(session))
        scene.says("d", end(session))
        scene.passes(29.9)
        assert len(scene.context.sessions) == 1
        scene.passes(0.1)
        assert len(scene.context.sessions) == 0

    def test_whether_there_is_one(self) -> None:
        """Others learn nothing: a session that is not theirs is like one that never was (I6)."""
        scene, session = in_a_call()
        scene.says("c", begin("S0"), c="NOTIFY\nSession:S0\nTerminate.\n\n")
        scene.says("c", begin(session), c=terminate())
        scene.says("c", end("S0"))
        scene.says("c", end(session))

    def test_nonsense(self) -> None:
        """Other words about a session do nothing, malformed ones neither; none is answered (I5)."""
        scene, session = in_a_call()
        for text in (
            f"NOTIFY\nSession:{session}\n\n",
            f"NOTIFY\nSession:{session}\nTerminate.\n\n",
            f"NOTIFY\nSession:{session}\nEnd:Somehow\n\n",
            "NOTIFY\nSession:?\nBegin.\n\n",
        ):
            for name in "abc":
                scene.says(name, text)
        assert len(scene.context.sessions) == 1

    def test_twice(self) -> None:
        """Reports may come twice."""
        scene, session = in_a_call()
        scene.says("b", begin(session) + begin(session) + end(session) + end(session))
        assert len(scene.context.sessions) == 0


class BoundsTests:
    """How many there are (I15)."""

    def test_one_unspent_a_pair(self) -> None:
        """A new session of a pair replaces the unspent one, which can't begin then (I7)."""
        scene, first = in_a_call()
        scene.calls("a", "b", "1")
        assert len(scene.context.sessions) == 1
        scene.says("b", begin(first), b=terminate())
        scene.says("b", NO_MORE, b=terminate("1") + DONE, a=terminate("1"))

    def test_its_time_is_its_own(self) -> None:
        """The new one has 30 s of its own."""
        scene, _ = in_a_call()
        scene.passes(20)
        scene.calls("a", "b", "1")
        scene.passes(29)
        assert len(scene.context.sessions) == 1
        scene.passes(1)
        assert len(scene.context.sessions) == 0

    def test_sixteen_a_caller(self) -> None:
        """A caller has at most sixteen unspent sessions; then it is told so (I15, I16).

        The callee is not even asked. A pair that has one may replace it; other callers don't count;
        one that begins or goes makes room.
        """
        scene = Scene(ask_status=False)
        scene.connect("a", "c")
        for n in range(17):
            lines = ("Accept:Create Ia,Ic", "Address:127.0.0.1")
            scene.new_says(f"b{n}", register(f"Ib{n}", *lines), DONE)

        def call(who: str, n: int) -> None:
            told = ACCEPTED + to_caller(f"Ib{n}", n=str(n))
            callee = to_callee(f"I{who}", str(n))
            scene.says(who, query(f"I{who}", f"Ib{n}"), **{who: told, f"b{n}": callee})

        for n in range(16):
            call("a", n)
        scene.says("a", query("Ia", "Ib16"), a=TOO_MANY)
        told = "NOTIFY\nToo Many Requests.\nTransaction:1\nCode:429\n\n"
        scene.says("a", query("Ia", "Ib16", "Transaction:1"), a=told)
        call("c", 16)
        session = scene.drawn["session3"]
        scene.forget()
        call("a", 5)
        scene.says("a", query("Ia", "Ib16"), a=TOO_MANY)
        scene.says("b3", begin(session))
        call("a", 16)
        scene.says("a", query("Ia", "Ib3"), a=TOO_MANY)
        scene.passes(30)
        scene.forget()
        call("a", 3)

    def test_sixteen_at_once(self) -> None:
        """The bound holds for calls that are decided at the same time, too (I15)."""
        scene = Scene()
        scene.connect("a")
        scene.says("a", register("Ia"), a=DONE)
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
            assert first.statement == "STATUS"
            assert len(more) == (n < 16)

    def test_begun_a_callee(self) -> None:
        """A callee has at most a thousand begun ones; one more is terminated at once (I15)."""
        scene = Scene(ask_status=False)
        scene.connect("a")
        scene.on_line("b", "Accept:Create Ia")
        for n in range(1001):
            scene.forget()
            scene.says("a", query("Ia", "Ib"), a=ACCEPTED + to_caller("Ib"), b=to_callee("Ia"))
            over = {"a": terminate(), "b": terminate()} if n == 1000 else {}
            scene.says("b", begin(scene.drawn["session"]), **over)
        assert len(scene.context.sessions) == 1000
