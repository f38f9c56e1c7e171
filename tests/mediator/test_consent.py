"""Consent on demand, rejections and policies (broker.mediator.consent, C3–C7).

In each scene Ib is online and wants to be asked, unless it says something else.
"""

from __future__ import annotations

from typing import Any, Final

import pytest

from broker.interfaces import StoreFailed
from broker.messages.errors import CalleeNotFound, ServiceUnavailable
from broker.tables.groups import GroupChange
from broker.tables.permits import ASK, PermitChange
from broker.tables.rate_limits import CONSENT_PROMPTS, WINDOW
from broker.terminal.registration.client import NOT_FOR_TERMINALS
from tests.mediator.conftest import Logged
from tests.mediator.scene import (
    ACCEPTED,
    BUSY,
    CAN,
    CANT,
    DENIED,
    DONE,
    NOT_FOUND,
    STATUS,
    SUPERSEDED,
    TOO_MANY,
    UNAVAILABLE,
    Scene,
    SlowStore,
    Waker,
    begin,
    failed,
    permits,
    query,
    register,
    terminate,
    to_callee,
    to_caller,
    with_resolver,
)
from tests.mediator.steps import Step, dial, leaves, on_line, play, says
from tests.support.clock import result_of, settle

ASKED: Final = "QUERY\nACCEPT\n\n"
#: Seconds in which a call is decided.
PATIENCE: Final = 5.0
FAMILY: Final = GroupChange("@family", ("Ia",))
GRANTED: Final = ACCEPTED + to_caller("Ib")


def lists(accept: str, reject: str | None = None) -> str:
    """What a callee answers."""
    more = "" if reject is None else f"Reject:Create {reject}\n"
    return f"NOTIFY\nAccept:Create {accept}\n{more}\n"


def told(caller: str = "Ia", host: str = "", port: int = 0, n: str = "") -> str:
    """What a callee is told of its caller, with its address where that is known (C7)."""
    text = to_callee(caller, n)
    where = f"Caller Address:{host}\nCaller Port:{port}\nSession" if host else "Session"
    return text.replace("Session", where, 1)


def stage(*kept: PermitChange, policy: str | None = ASK, **options: Any) -> tuple[Scene, SlowStore]:
    """Ia and Ix, connected, and Ib, which is online."""
    store = SlowStore(*kept, groups=options.pop("groups", ()))
    store.at_once = True
    scene = Scene(store=store, **options)
    scene.connect("a", "x")
    scene.on_line("b", *([] if policy is None else [f"Policy:{policy}"]))
    store.commits.clear()
    return scene, store


def asks(scene: Scene, caller: str = "a", callee: str = "Ib") -> None:
    """A terminal calls, and the callee is asked."""
    scene.says(caller, query(f"I{caller[0]}", callee), b=ASKED)


def accepted(scene: Scene, answer: str = lists("Ia")) -> None:
    """Ib answers that it accepts the caller, and then that it can take a call."""
    scene.says("b", answer, b=STATUS)
    scene.says("b", CAN, b=told(), a=GRANTED)


def denied(scene: Scene, answer: str = lists("Ix")) -> None:
    """Ia calls, and Ib answers that it does not accept it."""
    asks(scene)
    scene.says("b", answer)
    scene.passes(PATIENCE, a=DENIED)


def talk(scene: Scene, accept: str = "Ia", host: str = "", port: int = 0, n: str = "") -> str:
    """Ia calls, and is accepted; give the session."""
    asks(scene)
    scene.says("b", lists(accept), b=STATUS)
    granted = ACCEPTED + to_caller("Ib", n=n)
    scene.says("b", CAN, b=told("Ia", host, port, n), a=granted)
    return scene.drawn[f"session{n}"]


class AcceptedTests:
    """Who is accepted is told where the callee is, and the callee where its caller is."""

    def test_in_order(self) -> None:
        """Asked, then its status; then the callee is told before the caller (C3, C7, A11)."""
        scene, _ = stage()
        scene.on_line("a", port=1300)
        scene.sent.clear()
        talk(scene, host="127.0.0.1", port=1300)
        assert scene.sent == [
            ("b", "ACCEPT"),
            ("b", "STATUS"),
            ("a", "Request Accepted."),
            ("b", "Caller ID"),
            ("a", "Callee Address"),
        ]

    def test_caller_without_an_address(self) -> None:
        """Where the caller's address is not known, the callee is told none."""
        scene, _ = stage()
        talk(scene)

    def test_no_status(self) -> None:
        """Where no status is asked for, consent is the only question (fig. 5 of C)."""
        scene, _ = stage(ask_status=False)
        asks(scene)
        scene.says("b", lists("Ia"), b=told(), a=GRANTED)

    @pytest.mark.parametrize(
        "answer",
        [
            "NOTIFY\nAccept:Create Ix,Ia\n\n",
            "NOTIFY\nAccept:Create Ix\nAdd Iy\nAdd Ia\n\n",
            "NOTIFY\nAccept:Create taro\n\n",
            "NOTIFY\nAccept:Create @family\nReject:Create Ix,@work\n\n",
            "NOTIFY\nAccept:Create Ia\nReject:Create\n\n",
            "NOTIFY\nReject:Create nobody\nAccept:Create Ia\n\n",
        ],
    )
    def test_by_any_entry(self, answer: str) -> None:
        """By its identifier, a name of its, or a group that it is in (C3, S2004)."""
        scene, _ = stage(groups=[FAMILY])
        scene.says("a", register("Ia", "Name:taro"), a=DONE)
        asks(scene)
        accepted(scene, answer)

    def test_called_by_name(self) -> None:
        """TERM1 wants TERM3 (C2): both by name; the callee is told the identifier."""
        scene, _ = stage()
        scene.says("a", register("Ia", "Name:TERM1"), a=DONE)
        scene.says("b", "REGISTER\nName:TERM3\n\n", b=DONE)
        scene.says("a", query("TERM1", "TERM3"), b=ASKED)
        accepted(scene, lists("TERM1,TERM2,ABC,DEF"))

    def test_with_transactions(self) -> None:
        """A callee that has used transactions is asked with one, and answers that question."""
        scene, _ = stage()
        scene.says(
            "b",
            "QUERY\nPERMITS\nTransaction:t\n\n",
            b="NOTIFY\nAccept:Create\nPolicy:Ask\nTransaction:t\nCode:200\n\n",
        )
        scene.says("a", query("Ia", "Ib"), b="QUERY\nACCEPT\nTransaction:1\n\n")
        answer = lists("Ia").replace("NOTIFY\n", "NOTIFY\nTransaction:1\nCode:200\n")
        scene.says("b", answer, b="QUERY\nSTATUS\nTransaction:2\n\n")
        scene.says("b", CAN, b=told(), a=GRANTED)

    def test_woken(self) -> None:
        """A callee that holds no connection is woken, comes, and is asked then (S2002)."""
        scene, _ = stage(trigger=Waker())
        scene.leaves("b")
        scene.says("a", query("Ia", "Ib"))
        waker: Any = scene.broker.trigger
        assert waker.woken == [("Ib", "127.0.0.1", 1203)]
        scene.connect("b")
        answers = f"{register('Ib', 'Address:127.0.0.1')}{lists('Ia')}"
        scene.clients["b"].type(answers)
        heard = scene.heard("b")
        assert ASKED in heard
        scene.clients["b"].type(CAN)
        scene.reads(b=told(), a=GRANTED)

    def test_each_request_by_itself(self) -> None:
        """An answer decides one request, and is kept nowhere: the next is asked for again."""
        scene, store = stage()
        talk(scene)
        assert store.commits == []
        scene.says("b", "QUERY\nPERMITS\n\n", b=permits("Create"))
        scene.forget()
        denied(scene)

    def test_two_at_once(self) -> None:
        """Two callers are asked about by themselves, and each answer decides one."""
        scene, _ = stage()
        asks(scene)
        scene.says("x", query("Ix", "Ib"), b=ASKED)
        scene.says("b", lists("Ix"))
        scene.says("b", lists("Ix"), b=STATUS)
        scene.says("b", CAN, b=told("Ix"), x=GRANTED)
        scene.passes(PATIENCE, a=DENIED)

    def test_causes_for_callers_that_it_accepts(self) -> None:
        """A caller that is accepted, and can't be connected, is told why (A20)."""
        scene, _ = stage()
        asks(scene)
        scene.says("b", lists("Ia"), b=STATUS)
        scene.says("b", CANT, a=BUSY)
        asks(scene)
        scene.clients["b"].type(lists("Ia"))
        assert scene.heard("b") == STATUS
        scene.says("b", "REGISTER\nExpires:0\n\n", b=DONE)
        scene.says("b", CAN, a="NOTIFY\nCallee not Connected.\n\n")

    def test_too_many_unspent(self) -> None:
        """The caller's own share is told of once it is accepted, and not before."""
        scene, _ = stage(ask_status=False)
        for n in range(16):
            scene.context.sessions.granted(f"S{n}", "Ia", f"Iz{n}", "")
        denied(scene)
        asks(scene)
        scene.says("b", lists("Ia"), a=TOO_MANY)


IS_ASKED: Final = says("a", query("Ia", "Ib"), b=ASKED)
#: Ia calls, and it is not asked about.
CALL: Final = says("a", query("Ia", "Ib"))


def answered(answer: str) -> list[Step]:
    """Ib is asked, and says something."""
    return [IS_ASKED, says("b", answer)]


#: What comes of a call that is refused, up to its refusal.
# fmt: off
REFUSALS: Final[dict[str, list[Step]]] = {
    "not on the list": answered(lists("Ix,@work,taro")),
    "an empty list": answered(lists("")),
    "rejected": answered(lists("Ia", "Ia")),
    "rejected as a group": answered(lists("Ia", "@family")),
    "no list": answered("NOTIFY\nReject:Create Ix\n\n"),
    "nothing at all": answered("NOTIFY\n\n"),
    "another answer": answered(CAN),
    "no such question": answered(f"NOTIFY\nBad Message.\nCause:{NOT_FOR_TERMINALS}\n\n"),
    "both": answered("NOTIFY\nSTATUS Acceptable.\nAccept:Create Ia\n\n"),
    "an edit": answered("NOTIFY\nAccept:Add Ia\n\n"),
    "a limit": answered("NOTIFY\nAccept:Create Ia;uses=1\n\n"),
    "too many": answered(
        "NOTIFY\nAccept:Create Ia\n" + "".join(f"Add I{n}\n" for n in range(5)) + "Delete I1\n\n"
    ),
    "malformed": answered("NOTIFY\nAccept:Create ,,\n\n"),
    "no answer": [IS_ASKED],
    "gone": [IS_ASKED, leaves("b")],
    "unreachable": [leaves("b"), CALL, dial(succeeds=False)],
    "no address": [says("b", "REGISTER\nExpires:0\n\n", b=DONE), CALL],
    "unknown": [says("a", query("Ia", "nobody"))],
    "by its list": [on_line("c", "Accept:Create Ix"), says("a", query("Ia", "Ic"))],
    "rejected before": [says("b", "REGISTER\nReject:Create Ia\n\n", b=DONE), CALL],
    "rejected while asked": [
        IS_ASKED, says("b", "REGISTER\nReject:Add Ia\n\n", b=DONE), says("b", lists("Ia")),
    ],
    "too often": [*CONSENT_PROMPTS.pair * [denied], CALL],
}
# fmt: on


class RefusedTests:
    """Whatever it was, the caller learns one thing at one time, and the callee nothing (C6, I6)."""

    @pytest.mark.parametrize("case", REFUSALS)
    def test_one_and_the_same(self, case: str) -> None:
        """*Permission Denied.*, when the time to decide is over, and not a moment before.

        Nothing is sent to either side, and so nothing recorded.
        """
        scene, store = stage(groups=[FAMILY])
        scene.on_line("a", port=1300)
        begun = scene.clock.seconds()
        play(scene, *REFUSALS[case])
        waited = (scene.clock.seconds() - begun) % PATIENCE
        scene.passes(PATIENCE - waited - 0.001)
        scene.passes(0.001, a=DENIED)
        scene.passes(60)
        assert store.told == []

    def test_with_a_transaction(self) -> None:
        """A transaction brings back nothing else."""
        scene, _ = stage()
        scene.says("a", query("Ia", "Ib", "Transaction:q"), b=ASKED)
        scene.says("a", query("Ia", "nobody", "Transaction:r"))
        scene.says("b", lists("Ix"))
        denied = "NOTIFY\nPermission Denied.\nTransaction:{}\nCode:403\n\n"
        scene.passes(PATIENCE, a=denied.format("q") + denied.format("r"))

    @pytest.mark.parametrize("asked", [False, True])
    def test_at_once_where_no_callee_is_asked(self, asked: bool) -> None:
        """As long as no callee wants to be asked there is nothing to hide, and no refusal waits."""
        scene, _ = stage(policy=ASK if asked else None)
        if asked:
            scene.says("b", "REGISTER\nPolicy:List\n\n", b=DONE)
        scene.says("a", query("Ia", "Ib"), a=DENIED)
        scene.says("a", query("Ia", "nobody"), a=DENIED)

    def test_pipelined(self) -> None:
        """Each of several bare queries waits for its own time, and their answers keep order."""
        scene, _ = stage()
        scene.clients["a"].type(query("Ia", "nobody") + query("Ia", "Ib") + query("Ia", "Ix"))
        scene.reads(b=ASKED)
        scene.says("b", lists("Ia"), b=STATUS)
        scene.says("b", CAN)
        scene.passes(PATIENCE - 0.01)
        scene.passes(0.01, a=DENIED + GRANTED + DENIED, b=told())

    def test_caller_gone(self) -> None:
        """Who goes away while the callee is asked is forgotten, and the callee told nothing."""
        scene, _ = stage()
        timers = len(scene.clock.getDelayedCalls())
        asks(scene)
        scene.leaves("a")
        scene.says("b", lists("Ia"))
        assert len(scene.clock.getDelayedCalls()) <= timers + 1, "but for the deadlines' own"
        scene.passes(PATIENCE)

    def test_caller_gone_while_refused(self) -> None:
        """Nothing is left of a refusal once its caller has gone."""
        scene, _ = stage()
        scene.says("a", query("Ia", "nobody"))
        before = len(scene.clock.getDelayedCalls())
        scene.leaves("a")
        assert len(scene.clock.getDelayedCalls()) < before

    def test_late(self) -> None:
        """An answer that comes too late is ignored."""
        scene, _ = stage()
        asks(scene)
        scene.passes(PATIENCE, a=DENIED)
        scene.says("b", lists("Ia"))
        scene.passes(10)

    @pytest.mark.parametrize("at", ["asked", "status"])
    @pytest.mark.parametrize("change", ["Reject:Create Ia", "Reject:Create @family", "Policy:List"])
    def test_changed_meanwhile(self, at: str, change: str) -> None:
        """What the callee registers while it is asked counts in the turn that decides (I1, I2)."""
        scene, _ = stage(groups=[FAMILY])
        asks(scene)
        if at == "status":
            scene.says("b", lists("Ia"), b=STATUS)
        scene.says("b", f"REGISTER\n{change}\n\n", b=DONE)
        if change.startswith("Policy"):
            scene.says("b", CAN if at == "status" else lists("Ia"), a=DENIED)
        else:
            scene.says("b", CAN if at == "status" else lists("Ia"))
            scene.passes(PATIENCE, a=DENIED)

    @pytest.mark.parametrize("error", [ServiceUnavailable(), RuntimeError("a bug")])
    def test_resolver_fails(self, error: Exception, logged: Logged) -> None:
        """It refuses like anything else; an unexpected error is in the log."""
        scene, resolver = with_resolver()
        scene.connect("a")
        scene.on_line("b", "Policy:Ask")
        resolver.errors["lookup"] = error
        scene.says("a", query("Ia", "Ib"))
        scene.passes(PATIENCE, a=DENIED)
        assert len(logged.failures()) == isinstance(error, RuntimeError)


class PeaceTests:
    """A callee is asked only so often, and its callers can't tell (I17)."""

    def test_a_pair(self) -> None:
        """The fourth question of a minute is not asked; it is refused like the others."""
        scene, _ = stage()
        for _ in range(CONSENT_PROMPTS.pair):
            denied(scene)
        scene.says("a", query("Ia", "Ib"))
        scene.passes(PATIENCE - 0.01)
        scene.passes(0.01, a=DENIED)
        scene.passes(WINDOW - CONSENT_PROMPTS.pair * PATIENCE - PATIENCE)
        asks(scene)
        accepted(scene)

    def test_not_even_woken(self) -> None:
        """A callee that would have to be woken is left alone as well."""
        scene, _ = stage(trigger=Waker())
        scene.leaves("b")
        waker: Any = scene.broker.trigger
        for _ in range(9):
            scene.says("a", query("Ia", "Ib"))
            scene.passes(PATIENCE, a=DENIED)
        assert len(waker.woken) == CONSENT_PROMPTS.pair

    def test_in_all(self) -> None:
        """Questions a minute are limited for all callers together."""
        scene, _ = stage()
        for n in range(CONSENT_PROMPTS.callee):
            name = f"{chr(ord('k') + n)}"
            scene.connect(name)
            scene.says(name, query(f"I{name}", "Ib"), b=ASKED)
        scene.says("a", query("Ia", "Ib"))
        denied = {chr(ord("k") + n): DENIED for n in range(CONSENT_PROMPTS.callee)}
        scene.passes(PATIENCE, a=DENIED, **denied)
        scene.passes(WINDOW - PATIENCE)
        asks(scene)

    def test_rejected_costs_nothing(self) -> None:
        """A rejected caller can't use up what others may ask."""
        scene, _ = stage()
        spam = [chr(ord("k") + n) for n in range(CONSENT_PROMPTS.callee)]
        scene.says("b", f"REGISTER\nReject:Create I{',I'.join(spam)}\n\n", b=DONE)
        scene.connect(*spam)
        for name in spam:
            scene.says(name, query(f"I{name}", "Ib"))
        scene.passes(PATIENCE, **dict.fromkeys(spam, DENIED))
        asks(scene)

    def test_rejected_while_woken(self) -> None:
        """It is not asked about a caller that it rejects as it comes (I5)."""
        scene, _ = stage(trigger=Waker())
        scene.leaves("b")
        scene.says("a", query("Ia", "Ib"))
        scene.connect("b")
        scene.says("b", register("Ib", "Address:127.0.0.1", "Reject:Create Ia"), b=DONE)
        scene.passes(PATIENCE, a=DENIED)

    def test_says_nothing_of_the_caller(self) -> None:
        """The question is the same for every caller, by any name (C6)."""
        scene, _ = stage()
        asks(scene)
        scene.says("x", query("Ix", "Ib"), b=ASKED)


class LedgerTests:
    """What was disclosed (I1): to the caller by consent, to the callee because it was called."""

    @pytest.mark.parametrize("first", [False, True])
    def test_both(self, first: bool) -> None:
        """Each address that was told has its record, with what it rested on."""
        scene, store = stage(ledger_first=first)
        scene.on_line("a", port=1300)
        session = talk(scene, host="127.0.0.1", port=1300)
        scene.passes(1)
        rows = [(one.owner, one.recipient, one.port, one.basis, one.session) for one in store.told]
        assert rows == [
            ("Ib", "Ia", 1203, "consent", session),
            ("Ia", "Ib", 1300, "calling", session),
        ]
        scene.clients["a"].type("QUERY\nDISCLOSURES\n\n")
        assert ";by=calling;" in scene.heard("a")

    def test_room_for_both(self) -> None:
        """Where not both can be recorded neither is told (I1)."""
        scene, _ = stage()
        scene.on_line("a", port=1300)
        scene.context.disclosures._waiting_most = 1
        asks(scene)
        scene.says("b", lists("Ia"), b=STATUS)
        scene.says("b", CAN, a=UNAVAILABLE)
        scene.context.disclosures._waiting_most = 2
        talk(scene, host="127.0.0.1", port=1300)

    def test_by_list_as_before(self) -> None:
        """A callee whose list permits the caller is told no address of its."""
        scene, _ = stage(PermitChange("Ib", ("Ia",)), policy=None)
        scene.on_line("a", port=1300)
        scene.calls("a", "b")

    @pytest.mark.parametrize("change", ["gone", "withdrawn", "elsewhere", "expired"])
    def test_caller_moves(self, change: str) -> None:
        """An address that is not the caller's by then is not sent (I10)."""
        scene, store = stage(ledger_first=True)
        store.slow_ledger = True
        store.at_once = False
        scene.connect("a2", "a3")
        scene.on_line("a2", *(["Expires:2"] if change == "expired" else []), port=1300)
        if change == "expired":
            scene.leaves("a2")
        asks(scene)
        scene.says("b", lists("Ia"), b=STATUS)
        scene.says("b", CAN)
        if change == "gone":
            scene.leaves("a2")
        elif change == "withdrawn":
            scene.says("a2", "REGISTER\nExpires:0\n\n", a2=DONE)
        elif change == "elsewhere":
            again = register("Ia", "Address:127.0.0.1", "Port:1400")
            scene.says("a3", again, a3=DONE, a2=SUPERSEDED)
        else:
            scene.passes(3)
        (commit,) = store.pending
        scene.fires(commit, a=GRANTED, b=told())


class PolicyTests:
    """The policy is kept, and told to its owner."""

    def test_list_not_in_force(self) -> None:
        """While it is asked its list permits no caller, and does again afterwards (C3)."""
        scene, _ = stage(PermitChange("Ib", ("Ia",)))
        scene.says("b", "QUERY\nPERMITS\n\n", b=permits("Create Ia"))
        denied(scene)
        scene.says("b", "REGISTER\nPolicy:List\n\n", b=DONE)
        scene.calls("a", "b")

    def test_asked_from_now_on(self) -> None:
        """A callee that changes to Ask while a call is decided is not called by its list (I2)."""
        scene, _ = stage(PermitChange("Ib", ("Ia",)), policy=None)
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", "REGISTER\nPolicy:Ask\n\n", b=DONE)
        scene.says("b", CAN)
        scene.passes(PATIENCE, a=DENIED)

    def test_durable(self) -> None:
        """Policy and rejections are committed before they are acknowledged, and outlive it (I8)."""
        scene, store = stage(policy=None)
        store.at_once = False
        scene.says("b", "REGISTER\nPolicy:Ask\nReject:Create Ix,@g\nAccept:Create Ia\n\n")
        scene.says("x", query("Ix", "Ib"), x=DENIED)
        scene.fires(store.pending[0], b=DONE)
        assert store.commits == [(PermitChange("Ib", ("Ia",), (), ("Ix", "@g"), ASK),)]
        again = Scene(store=store)
        again.connect("a")
        again.on_line("b")
        asks(again)
        again.says("b", lists("Ia"), b=STATUS)
        again.says("b", CAN, b=told(), a=GRANTED)

    def test_told_back(self) -> None:
        """With a transaction its own policy and rejections are told, where there are any."""
        scene, _ = stage()
        scene.says("b", "REGISTER\nReject:Create Ix\nAdd @g\n\n", b=DONE)
        scene.says(
            "b",
            "QUERY\nPERMITS\nTransaction:1\n\n",
            b="NOTIFY\nAccept:Create\nReject:Create Ix,@g\nPolicy:Ask\nTransaction:1\nCode:200\n\n",
        )
        scene.says("b", "QUERY\nPERMITS\n\n", b=permits("Create"))
        scene.says("b", "REGISTER\nPolicy:List\nReject:Delete Ix,@g\n\n", b=DONE)
        scene.says(
            "b",
            "QUERY\nPERMITS\nTransaction:2\n\n",
            b="NOTIFY\nAccept:Create\nTransaction:2\nCode:200\n\n",
        )

    def test_the_same_again(self) -> None:
        """A terminal that says each time what it said before costs the store nothing."""
        scene, store = stage()
        scene.says("b", register("Ib", "Policy:Ask", "Address:127.0.0.1"), b=DONE)
        assert store.commits == []

    def test_with_an_address(self) -> None:
        """With an address, both or neither (A5)."""
        scene, store = stage()
        store.at_once = False
        scene.connect("c")
        scene.says("c", register("Ic", "Policy:Ask", "Address:127.0.0.1", "Port:1400"))
        scene.fires(store.pending[0], StoreFailed("the disk is full"), c=failed("the disk is full"))
        assert scene.address("Ic") is None
        assert not scene.context.permits.requires_consent("Ic")

    @pytest.mark.parametrize(
        ("line", "cause"),
        [
            ("Reject:Create Ix;uses=1", "a rejection cannot have limits"),
            ("Reject:Add Ix;expires=60", "a rejection cannot have limits"),
        ],
    )
    def test_refused(self, line: str, cause: str) -> None:
        """What can't be done is refused whole, with its cause."""
        scene, store = stage()
        scene.says("b", f"REGISTER\nAccept:Create Ix\n{line}\n\n", b=failed(cause))
        scene.says("b", "QUERY\nPERMITS\n\n", b=permits("Create"))
        assert store.commits == []

    def test_too_long(self) -> None:
        """The two lists share their room, so that they can be told in one message (I15)."""
        scene, store = stage()
        names = [f"{n:04}{'x' * 110}" for n in range(500)]
        edits = "".join(f"Add {','.join(names[n : n + 8])}\n" for n in range(0, 500, 8))
        scene.says("b", f"REGISTER\nAccept:Create\n{edits}\n", b=DONE)
        store.commits.clear()
        more = "".join(f"Add {','.join(names[n : n + 8])}\n" for n in range(0, 40, 8))
        cause = "a list holds at most 60000 bytes"
        scene.says("b", f"REGISTER\nReject:Create\n{more}\n", b=failed(cause))
        assert store.commits == []


class RejectTests:
    """A rejected caller is refused whatever else is said (C5)."""

    @pytest.mark.parametrize("entry", ["Ia", "taro", "@family"])
    @pytest.mark.parametrize("accept", ["Ia", "@family", "Ia,@family"])
    def test_wins(self, entry: str, accept: str) -> None:
        """It wins over every entry of the list, by identifier, name or group."""
        scene, _ = stage(policy=None, groups=[FAMILY])
        scene.says("a", register("Ia", "Name:taro"), a=DONE)
        scene.says("b", f"REGISTER\nAccept:Create {accept}\nReject:Create {entry}\n\n", b=DONE)
        scene.says("a", query("Ia", "Ib"), a=DENIED)
        scene.says("b", f"REGISTER\nReject:Delete {entry}\n\n", b=DONE)
        scene.calls("a", "b")

    def test_a_name_of_later(self) -> None:
        """A caller that takes a rejected name is rejected from then on, and its calls end (I2)."""
        scene, _ = stage(PermitChange("Ib", ("Ia",)), policy=None)
        scene.says("b", "REGISTER\nReject:Create taro\n\n", b=DONE)
        session = scene.calls("a", "b")
        scene.says("b", begin(session))
        scene.says("a", register("Ia", "Name:taro"), a=terminate() + DONE, b=terminate())
        scene.says("a", query("Ia", "Ib"), a=DENIED)

    def test_a_member_of_later(self) -> None:
        """So is one that is put into a rejected group."""
        scene, _ = stage(PermitChange("Ib", ("Ia",), (), ("@g",)), policy=None)
        scene.calls("a", "b")
        result_of(scene.context.permit_admin.regroup("@g", ["Ia"]))
        scene.reads(a=terminate(), b=terminate())
        scene.says("a", query("Ia", "Ib"), a=DENIED)

    def test_ends_calls(self) -> None:
        """A rejection ends sessions by the list and by consent (I2)."""
        scene, _ = stage(PermitChange("Ib", ("Ia", "Ix")), policy=None)
        scene.calls("a", "b")
        scene.forget()
        scene.calls("x", "b", n="2")
        scene.says("b", "REGISTER\nReject:Add Ix\n\n", b=terminate("2") + DONE, x=terminate("2"))

    def test_not_accepted_by_it(self) -> None:
        """A rejection that is taken back does not accept the caller (I3)."""
        scene, _ = stage(policy=None)
        scene.says("b", "REGISTER\nReject:Create Ix\n\n", b=DONE)
        scene.says("b", "REGISTER\nReject:Create\n\n", b=DONE)
        scene.says("x", query("Ix", "Ib"), x=DENIED)

    def test_outlives_the_account(self) -> None:
        """A rejected identifier stays so when its account goes; its own rejections go with it."""
        scene, store = stage(
            PermitChange("Ib", (), (), ("Ix",)), PermitChange("Ix", (), (), ("Ib",), ASK)
        )
        result_of(scene.context.permit_admin.forget("Ix"))
        assert scene.context.permits.rejects("Ib", "Ix")
        assert not scene.context.permits.table.knows("Ix")
        assert store.commits == [(PermitChange("Ix", ()),)]

    def test_a_use_is_kept(self) -> None:
        """What else changes in a list leaves rejections and policy as they are."""
        scene, _ = stage(policy=None)
        scene.says("b", "REGISTER\nAccept:Create Ia;uses=2\nReject:Create Ix\n\n", b=DONE)
        scene.calls("a", "b")
        scene.passes(1)
        assert scene.context.permits.rejects("Ib", "Ix")


class RevocationTests:
    """What stands by consent goes on until it ends, or is rejected (I2)."""

    @pytest.mark.parametrize("begun", [False, True])
    def test_a_session_by_consent(self, begun: bool) -> None:
        """Neither the list, nor another policy, nor a later no ends it; a rejection does."""
        scene, _ = stage()
        session = talk(scene)
        if begun:
            scene.says("b", begin(session))
        scene.says("b", "REGISTER\nAccept:Create Iz\n\n", b=DONE)
        scene.says("b", "REGISTER\nAccept:Delete Ia\n\n", b=DONE)
        scene.says("b", "REGISTER\nPolicy:List\n\n", b=DONE)
        scene.says("b", "REGISTER\nPolicy:Ask\n\n", b=DONE)
        scene.says("b", "REGISTER\nReject:Add Iz\n\n", b=DONE)
        scene.says("b", "REGISTER\nReject:Add Ia\n\n", b=terminate() + DONE, a=terminate())

    def test_a_session_by_list(self) -> None:
        """Once it wants to be asked, its list permits nothing, sessions included."""
        scene, _ = stage(PermitChange("Ib", ("Ia",)), policy=None)
        scene.calls("a", "b")
        scene.says("b", "REGISTER\nPolicy:Ask\n\n", b=terminate() + DONE, a=terminate())

    def test_consent_is_no_entry(self) -> None:
        """A terminal called ``consent`` has nothing to do with it."""
        scene, _ = stage(PermitChange("Ib", ("consent",)))
        talk(scene)
        scene.says("b", "REGISTER\nAccept:Delete consent\n\n", b=DONE)


class NamesTests:
    """Names that terminals register (C1)."""

    def test_first_come(self) -> None:
        """Without authentication, a name is the first terminal's that claims it."""
        scene, store = stage(PermitChange("Ib", ("Ia",)), policy=None)
        scene.says("b", "REGISTER\nName:taro@example.jp\n\n", b=DONE)
        scene.says("b", "REGISTER\nName:taro@example.jp\n\n", b=DONE)
        taken = failed("this name is already in use")
        scene.says("x", register("Ix", "Name:taro@example.jp"), x=taken)
        scene.says("a", query("Ia", "taro@example.jp"), b=STATUS)
        scene.says("b", CAN, b=to_callee("Ia"), a=GRANTED)
        assert store.commits == []

    def test_its_own_identifier(self) -> None:
        """That it is called by its identifier goes without saying."""
        scene, _ = stage()
        scene.says("b", "REGISTER\nName:Ib\n\n", b=DONE)

    def test_no_identifier_of_another(self) -> None:
        """None that is connected, has a list, a policy, an address or an account."""
        scene, _ = stage(PermitChange("Ic", ("Ia",)), PermitChange("Id", (), (), (), ASK))
        scene.says("x", register("Ix"), x=DONE)
        scene.connect("e")
        scene.on_line("e")
        scene.leaves("e")
        result_of(scene.mediator.accounts.add("If", "correct horse"))
        for name in ("Ix", "Ib", "Ic", "Id", "Ie", "If"):
            taken = failed("this name is already in use")
            scene.says("a", register("Ia", f"Name:{name}"), a=taken)

    def test_not_taken_by_what_fails(self) -> None:
        """A registration that fails takes no name (A5)."""
        scene, _ = stage()
        why = failed("an unspecified, multicast, broadcast or reserved address")
        scene.says("a", register("Ia", "Name:taro", "Address:0.0.0.0"), a=why)
        store: Any = scene.broker.store
        store.at_once = False
        scene.says("a", register("Ia", "Name:taro", "Accept:Add Ib"))
        scene.fires(store.pending[0], StoreFailed("the disk is full"), a=failed("the disk is full"))
        scene.says("x", register("Ix", "Name:taro"), x=DONE)

    def test_so_many(self) -> None:
        """One identifier has 16, all together 10,000 (I15)."""
        scene, _ = stage()
        for n in range(16):
            scene.says("a", register("Ia", f"Name:n{n}"), a=DONE)
        most = failed("an identifier has at most 16 names")
        scene.says("a", register("Ia", "Name:n16"), a=most)
        table = scene.mediator.accounts.table
        for n in range(10_000 - 16):
            table.claim(f"J{n}", f"m{n}")
        scene.says("x", register("Ix", "Name:y"), x=failed("at most 10000 names can be claimed"))

    def test_given_by_the_operator(self) -> None:
        """Where there are accounts, it is one that the operator has given it; or refused, alike."""
        scene = Scene(accounts={"Ia": "correct horse", "Ib": "battery staple"})
        result_of(scene.mediator.accounts.add_name("Ia", "taro"))
        result_of(scene.mediator.accounts.add_name("Ib", "hanako"))
        scene.connect("a")
        login = register("Ia", "Password:correct horse")
        scene.clients["a"].type(login)
        settle(scene.clock)
        scene.reads(a=DONE)
        scene.says("a", "REGISTER\nName:taro\n\n", a=DONE)
        for name in ("hanako", "Ib", "nobody"):
            why = failed("the operator has not given you this name")
            scene.says("a", f"REGISTER\nName:{name}\n\n", a=why)


def test_unavailable_for_callers_that_it_accepts() -> None:
    """Where the caller can't be looked up since a part is away, nothing is granted (I3)."""
    scene, resolver = with_resolver(ask_status=False)
    scene.connect("a")
    scene.on_line("b", "Policy:Ask")
    scene.says("a", query("Ia", "Ib"), b=ASKED)
    resolver.errors["lookup"] = ServiceUnavailable()
    scene.says("b", lists("Ia"), a=UNAVAILABLE)
    resolver.errors["lookup"] = CalleeNotFound()
    scene.says("a", query("Ia", "Ib"))
    scene.passes(PATIENCE, a=DENIED)
    del resolver.errors["lookup"]
    scene.says("a", query("Ia", "Ib"), b=ASKED)
    resolver.errors["lookup"] = CalleeNotFound()
    scene.says("b", lists("Ia"), a=NOT_FOUND)
