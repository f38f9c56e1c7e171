"""Consent on demand, rejections and policies (broker.mediator.consent, C3–C7).

In each scene Ib is online and wants to be asked, unless it says something else.
"""

from __future__ import annotations

from itertools import product
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
    NOT_CONNECTED,
    NOT_FOUND,
    STATUS,
    SUPERSEDED,
    TOO_MANY,
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
    with_resolver,
)
from tests.mediator.steps import (
    FORGET,
    Step,
    asks,
    calls,
    connect,
    dial,
    fails,
    holds,
    leaves,
    on_line,
    passes,
    play,
    reads,
    registers,
    says,
)
from tests.support.clock import result_of, settle

ASKED: Final = "QUERY\nACCEPT\n\n"
#: Seconds in which a call is decided.
PATIENCE: Final = 5.0
GRANTED: Final = ACCEPTED + to_caller("Ib")


def lists(accept: str, reject: str | None = None) -> str:
    """What a callee answers."""
    more = "" if reject is None else f"Reject:Create {reject}\n"
    return f"NOTIFY\nAccept:Create {accept}\n{more}\n"


def told(caller: str = "Ia", host: str = "", port: int = 0) -> str:
    """What a callee is told of its caller, with its address where that is known (C7)."""
    where = f"Caller Address:{host}\nCaller Port:{port}\nSession" if host else "Session"
    return to_callee(caller).replace("Session", where, 1)


class Stage(Scene):
    """Ia and Ix, connected, and Ib, which is online; ``@family`` is Ia.

    :ivar store: what is kept, at once
    """

    def __init__(self, policy: str | None = ASK, **options: Any) -> None:
        self.store = SlowStore(groups=[GroupChange("@family", ("Ia",))])
        self.store.at_once = True
        super().__init__(store=self.store, **options)
        self.connect("a", "x")
        self.on_line("b", *([] if policy is None else [f"Policy:{policy}"]))
        self.store.commits.clear()


#: Ia calls, and it is not asked about; or is.
CALL: Final = says("a", query("Ia", "Ib"))
IS_ASKED: Final = says("a", query("Ia", "Ib"), b=ASKED)
X_IS_ASKED: Final = says("x", query("Ix", "Ib"), b=ASKED)
#: Ib answers that it accepts Ia, and then that it can take the call.
ACCEPTS: Final = says("b", lists("Ia"), b=STATUS)
TAKES: Final = says("b", CAN, b=told(), a=GRANTED)
TALK: Final[list[Step]] = [IS_ASKED, ACCEPTS, TAKES]
IN_TIME: Final = passes(PATIENCE, a=DENIED)
DENIES: Final[list[Step]] = [IS_ASKED, says("b", lists("Ix")), IN_TIME]
#: Ia is online too, and Ib is told where.
A_TOO: Final = on_line("a", port=1300)
TAKES_TOO: Final = says("b", CAN, b=told("Ia", "127.0.0.1", 1300), a=GRANTED)
#: Ib is called by its list from now on.
BY_LIST: Final = registers("b", "Policy:List", "Accept:Create Ia")
PERMITS: Final = "QUERY\nPERMITS\n\n"
EMPTY: Final = says("b", PERMITS, b=permits("Create"))
COMMITTED_NOTHING: Final = holds(lambda scene: scene.store.commits == [])
TAKEN: Final = failed("this name is already in use")
#: The session is void, and both read it.
ENDED: Final = {"a": terminate(), "b": terminate() + DONE}
#: Others than Ia, as many as may ask about themselves in a minute.
SPAM: Final = [chr(ord("k") + n) for n in range(CONSENT_PROMPTS.callee)]


def coded(transaction: str, *, ask: str = "") -> Step:
    """Ib reads its own policy and rejections, with a transaction."""
    answer = f"NOTIFY\nAccept:Create\n{ask}Transaction:{transaction}\nCode:200\n\n"
    return says("b", f"{PERMITS[:-1]}Transaction:{transaction}\n\n", b=answer)


def stored(at_once: bool) -> Step:
    """From now on the store keeps things at once, or when a test says so."""
    return lambda scene: vars(scene.broker.store).update(at_once=at_once)


def not_kept(name: str, cause: str) -> Step:
    """The oldest commit fails, and a terminal reads why."""
    return lambda scene: scene.fires(
        vars(scene.broker.store)["pending"][0], StoreFailed(cause), **{name: failed(cause)}
    )


def act(name: str, *arguments: Any) -> Step:
    """The operator does something with lists and groups."""
    return lambda scene: result_of(getattr(scene.context.permit_admin, name)(*arguments))


def claims(count: int) -> Step:
    """Others have claimed this number of names."""

    def step(scene: Scene) -> None:
        for n in range(count):
            scene.mediator.accounts.table.claim(f"J{n}", f"m{n}")

    return step


def begins(scene: Scene) -> None:
    """Ib says that the session has begun."""
    scene.says("b", begin("{session}"))


# fmt: off
CASES: Final[dict[str, list[Step]]] = {
    # Where the caller's address is not known, the callee is told none. An answer decides one
    # request, and is kept nowhere: the next is asked for again.
    "each request by itself": [*TALK, COMMITTED_NOTHING, EMPTY, FORGET, *DENIES],
    # By its identifier, a name of its, or a group that it is in (C3, S2004).
    **{
        f"accepted by {answer!r}": [
            registers("a", "Name:taro"), IS_ASKED,
            says("b", f"NOTIFY\n{answer}\n\n", b=STATUS), TAKES,
        ]
        for answer in (
            "Accept:Create Ix,Ia", "Accept:Create Ix\nAdd Iy\nAdd Ia", "Accept:Create taro",
            "Accept:Create @family\nReject:Create Ix,@work", "Accept:Create Ia\nReject:Create",
            "Reject:Create nobody\nAccept:Create Ia",
        )
    },
    # TERM1 wants TERM3 (C2): both by name; the callee is told the identifier.
    "called by name": [
        registers("a", "Name:TERM1"), registers("b", "Name:TERM3"),
        says("a", query("TERM1", "TERM3"), b=ASKED),
        says("b", lists("TERM1,TERM2,ABC,DEF"), b=STATUS), TAKES,
    ],
    # A callee that has used transactions is asked with one, and answers that question.
    "with transactions": [
        coded("t", ask="Policy:Ask\n"),
        says("a", query("Ia", "Ib"), b="QUERY\nACCEPT\nTransaction:1\n\n"),
        says(
            "b", lists("Ia").replace("NOTIFY\n", "NOTIFY\nTransaction:1\nCode:200\n"),
            b="QUERY\nSTATUS\nTransaction:2\n\n",
        ),
        TAKES,
    ],
    # A callee that holds no connection is woken, comes, and is asked then (S2002).
    "woken": [
        leaves("b"), CALL, dial(succeeds=True), connect("b"),
        says("b", register("Ib", "Address:127.0.0.1") + lists("Ia"), b=ASKED + DONE + STATUS),
        TAKES,
    ],
    # The question is the same for every caller, by any name, and each answer decides one (C6).
    "two at once": [
        IS_ASKED, X_IS_ASKED, says("b", lists("Ix")), says("b", lists("Ix"), b=STATUS),
        says("b", CAN, b=told("Ix"), x=GRANTED), IN_TIME,
    ],
    # A caller that is accepted, and can't be connected, is told why (A20).
    "accepted, and busy": [IS_ASKED, ACCEPTS, says("b", CANT, a=BUSY)],
    "accepted, and away": [
        IS_ASKED, ACCEPTS, registers("b", "Expires:0"), says("b", CAN, a=NOT_CONNECTED),
    ],
    # A transaction brings back nothing else.
    "refused with a transaction": [
        says("a", query("Ia", "Ib", "Transaction:q"), b=ASKED),
        says("a", query("Ia", "nobody", "Transaction:r")), says("b", lists("Ix")),
        passes(PATIENCE, a="".join(
            f"NOTIFY\nPermission Denied.\nTransaction:{name}\nCode:403\n\n" for name in "qr"
        )),
    ],
    # As long as no callee wants to be asked there is nothing to hide, and no refusal waits.
    "at once where no callee is asked": [
        registers("b", "Policy:List"), says("a", query("Ia", "Ib") + query("Ia", "nobody"),
        a=2 * DENIED),
    ],
    # Each of several bare queries waits for its own time, and their answers keep order.
    "pipelined": [
        says("a", query("Ia", "nobody") + query("Ia", "Ib") + query("Ia", "Ix"), b=ASKED), ACCEPTS,
        says("b", CAN), passes(PATIENCE - 0.01),
        passes(0.01, a=DENIED + GRANTED + DENIED, b=told()),
    ],
    # An answer that comes too late is ignored.
    "late": [IS_ASKED, IN_TIME, says("b", lists("Ia")), passes(10)],
    # What the callee registers while it is asked counts in the turn that decides (I1, I2).
    **{
        f"{change}, while asked for its {at}": [
            IS_ASKED, *([ACCEPTS] if at == "status" else []), registers("b", change),
            says("b", CAN if at == "status" else lists("Ia"), **at_once), passes(PATIENCE, **later),
        ]
        for at in ("list", "status")
        for change, at_once, later in (
            ("Reject:Create Ia", {}, {"a": DENIED}), ("Reject:Create @family", {}, {"a": DENIED}),
            ("Policy:List", {"a": DENIED}, {}),
        )
    },
    # A callee is asked only so often, and its callers can't tell (I17): a pair three times a
    # minute,
    "asked too often": [
        *CONSENT_PROMPTS.pair * DENIES, CALL, passes(PATIENCE - 0.01), passes(0.01, a=DENIED),
        passes(WINDOW - CONSENT_PROMPTS.pair * PATIENCE - PATIENCE), *TALK,
    ],
    # and it is left alone as well where it would have to be woken,
    "woken too often": [
        leaves("b"), *9 * [CALL, IN_TIME],
        holds(lambda scene: len(scene.dials) == CONSENT_PROMPTS.pair),
    ],
    # and for all callers together.
    "asked too often by all": [
        connect(*SPAM), *(says(name, query(f"I{name}", "Ib"), b=ASKED) for name in SPAM), CALL,
        passes(PATIENCE, a=DENIED, **dict.fromkeys(SPAM, DENIED)), passes(WINDOW - PATIENCE),
        IS_ASKED,
    ],
    # A rejected caller can't use up what others may ask.
    "rejected ones": [
        registers("b", f"Reject:Create I{',I'.join(SPAM)}"), connect(*SPAM),
        *(says(name, query(f"I{name}", "Ib")) for name in SPAM),
        passes(PATIENCE, **dict.fromkeys(SPAM, DENIED)), IS_ASKED,
    ],
    # It is not asked about a caller that it rejects as it comes (I5).
    "rejected while woken": [
        leaves("b"), CALL, dial(succeeds=True), connect("b"),
        registers("b", "Address:127.0.0.1", "Reject:Create Ia"), IN_TIME,
    ],
    # A callee whose list permits the caller is told no address of its. While it is asked its list
    # permits no caller, and does again afterwards (C3).
    "list not in force": [
        A_TOO, BY_LIST, registers("b", "Policy:Ask"), says("b", PERMITS, b=permits("Create Ia")),
        *DENIES, registers("b", "Policy:List"), calls("a", "b"),
    ],
    # A callee that changes to Ask while a call is decided is not called by its list (I2).
    "asked from now on": [
        BY_LIST, asks(), registers("b", "Policy:Ask"), says("b", CAN), IN_TIME,
    ],
    # With a transaction its own policy and rejections are told, where there are any.
    "told back": [
        registers("b", "Reject:Create Ix", "Add @g"),
        coded("1", ask="Reject:Create Ix,@g\nPolicy:Ask\n"), EMPTY,
        registers("b", "Policy:List", "Reject:Delete Ix,@g"), coded("2"),
    ],
    # A terminal that says each time what it said before costs the store nothing.
    "the same again": [registers("b", "Policy:Ask", "Address:127.0.0.1"), COMMITTED_NOTHING],
    # With an address, both or neither (A5).
    "a policy that is not kept": [
        stored(False), connect("c"),
        says("c", register("Ic", "Policy:Ask", "Address:127.0.0.1", "Port:1400")),
        not_kept("c", "the disk is full"),
        holds(lambda scene: scene.address("Ic") is None),
        holds(lambda scene: not scene.context.permits.requires_consent("Ic")),
    ],
    # What can't be done is refused whole, with its cause.
    **{
        line: [
            says("b", register("Ib", "Accept:Create Ix", line),
                 b=failed("a rejection cannot have limits")),
            EMPTY, COMMITTED_NOTHING,
        ]
        for line in ("Reject:Create Ix;uses=1", "Reject:Add Ix;expires=60")
    },
    # A rejection wins over every entry of the list, by identifier, name or group (C5).
    **{
        f"accepts {accept}, rejects {entry}": [
            registers("a", "Name:taro"),
            registers("b", "Policy:List", f"Accept:Create {accept}", f"Reject:Create {entry}"),
            says("a", query("Ia", "Ib"), a=DENIED), registers("b", f"Reject:Delete {entry}"),
            calls("a", "b"),
        ]
        for entry, accept in product(("Ia", "taro", "@family"), ("Ia", "@family", "Ia,@family"))
    },
    # A caller that takes a rejected name is rejected from then on, and its calls end (I2).
    "rejected by a name of later": [
        BY_LIST, registers("b", "Reject:Create taro"), calls("a", "b"), begins,
        registers("a", "Name:taro", a=terminate() + DONE, b=terminate()),
        says("a", query("Ia", "Ib"), a=DENIED),
    ],
    # So is one that is put into a rejected group.
    "rejected as a member of later": [
        BY_LIST, registers("b", "Reject:Create @g"), calls("a", "b"), act("regroup", "@g", ["Ia"]),
        reads(a=terminate(), b=terminate()), says("a", query("Ia", "Ib"), a=DENIED),
    ],
    # A rejection ends sessions by the list, and no other's (I2).
    "a rejection ends calls": [
        registers("b", "Policy:List", "Accept:Create Ia,Ix"), calls("a", "b"), FORGET,
        calls("x", "b", n="2"),
        registers("b", "Reject:Add Ix", b=terminate("2") + DONE, x=terminate("2")),
    ],
    # A rejection that is taken back does not accept the caller (I3).
    "a rejection is taken back": [
        registers("b", "Policy:List", "Reject:Create Ix"), registers("b", "Reject:Create"),
        says("x", query("Ix", "Ib"), x=DENIED),
    ],
    # A rejected identifier stays so when its account goes; its own rejections go with it.
    "a rejection outlives the account": [
        registers("b", "Reject:Create Ix"), registers("x", "Reject:Create Ib", "Policy:Ask"),
        lambda scene: vars(scene.broker.store)["commits"].clear(), act("forget", "Ix"),
        holds(lambda scene: scene.context.permits.rejects("Ib", "Ix")),
        holds(lambda scene: not scene.context.permits.table.knows("Ix")),
        holds(lambda scene: scene.store.commits == [(PermitChange("Ix", ()),)]),
    ],
    # What else changes in a list leaves rejections and policy as they are.
    "a rejection outlives a use": [
        registers("b", "Policy:List", "Accept:Create Ia;uses=2", "Reject:Create Ix"),
        calls("a", "b"), passes(1), holds(lambda scene: scene.context.permits.rejects("Ib", "Ix")),
    ],
    # A session by consent goes on until it ends, or is rejected: neither the list, nor another
    # policy, nor a later no ends it (I2).
    **{
        f"a session by consent, {'begun' if begun else 'unspent'}": [
            *TALK, *begun * [begins],
            *(
                registers("b", line)
                for line in ("Accept:Create Iz", "Accept:Delete Ia", "Policy:List", "Policy:Ask",
                             "Reject:Add Iz")
            ),
            registers("b", "Reject:Add Ia", **ENDED),
        ]
        for begun in (False, True)
    },
    # Once it wants to be asked, its list permits nothing, sessions included.
    "a session by list": [BY_LIST, calls("a", "b"), registers("b", "Policy:Ask", **ENDED)],
    # A terminal called ``consent`` has nothing to do with it.
    "consent is no entry": [
        registers("b", "Accept:Create consent"), *TALK, registers("b", "Accept:Delete consent"),
    ],
    # Without authentication, a name is the first terminal's that claims it (C1).
    "a name": [
        BY_LIST, registers("b", "Name:taro@example.jp"), registers("b", "Name:taro@example.jp"),
        says("x", register("Ix", "Name:taro@example.jp"), x=TAKEN),
        says("a", query("Ia", "taro@example.jp"), b=STATUS), TAKES,
    ],
    # That it is called by its identifier goes without saying.
    "its own identifier as a name": [registers("b", "Name:Ib")],
    # None that is connected, has a list, a policy, an address or an account.
    "an identifier of another as a name": [
        registers("x"), connect("c", "d", "e"), registers("c", "Accept:Create Ia"), leaves("c"),
        registers("d", "Policy:Ask"), leaves("d"), on_line("e"), leaves("e"),
        lambda scene: result_of(scene.mediator.accounts.add("If", "correct horse")),
        *(says("a", register("Ia", f"Name:I{name}"), a=TAKEN) for name in "xbcdef"),
    ],
    # A registration that fails takes no name (A5).
    "a name that is not kept": [
        says("a", register("Ia", "Name:taro", "Address:0.0.0.0"),
             a=failed("an unspecified, multicast, broadcast or reserved address")),
        stored(False), says("a", register("Ia", "Name:taro", "Accept:Add Ib")),
        not_kept("a", "the disk is full"), registers("x", "Name:taro"),
    ],
    # One identifier has 16 names, all together 10,000 (I15).
    "many names": [
        *(registers("a", f"Name:n{n}") for n in range(16)),
        says("a", register("Ia", "Name:n16"), a=failed("an identifier has at most 16 names")),
        claims(10_000 - 16),
        says("x", register("Ix", "Name:y"), x=failed("at most 10000 names can be claimed")),
    ],
}
# fmt: on


@pytest.mark.parametrize("case", CASES)
def test_consent(case: str) -> None:
    """What comes of calls to callees that want to be asked, that reject, or that have names."""
    play(Stage(), *CASES[case])


@pytest.mark.parametrize("first", [False, True])
def test_when_a_caller_is_accepted_then_each_address_told_is_recorded(first: bool) -> None:
    """Asked, then its status; then the callee is told before the caller (C3, C7, A11).

    Each address that was told has its record, with what it rested on (I1): to the caller by
    consent, to the callee because it was called.
    """
    scene = Stage(ledger_first=first)
    play(scene, A_TOO)
    scene.sent.clear()
    play(scene, IS_ASKED, ACCEPTS, TAKES_TOO)
    asked = [("b", "ACCEPT"), ("b", "STATUS")]
    granted = [("a", "Request Accepted."), ("b", "Caller ID"), ("a", "Callee Address")]
    assert scene.sent == asked + granted
    scene.passes(1)
    session = scene.drawn["session"]
    records = [
        (one.owner, one.recipient, one.port, one.basis, one.session) for one in scene.store.told
    ]
    assert records == [
        ("Ib", "Ia", 1203, "consent", session),
        ("Ia", "Ib", 1300, "calling", session),
    ]
    scene.clients["a"].type("QUERY\nDISCLOSURES\n\n")
    assert ";by=calling;" in scene.heard("a")


def test_when_not_both_can_be_recorded_then_neither_is_told() -> None:
    """Room for one of two records is none (I1)."""
    scene = Stage()
    waiting = scene.context.disclosures
    waiting._waiting_most = 1
    play(scene, A_TOO, IS_ASKED, ACCEPTS, says("b", CAN, a=UNAVAILABLE))
    waiting._waiting_most = 2
    play(scene, IS_ASKED, ACCEPTS, TAKES_TOO)


#: Ia's address, registered over its second connection, is not that by the time it is to be told.
MOVES: Final[dict[str, list[Step]]] = {
    "gone": [leaves("a2")],
    "withdrawn": [registers("a2", "Expires:0")],
    "elsewhere": [registers("a3", "Address:127.0.0.1", "Port:1400", a2=SUPERSEDED)],
    "expired": [passes(3)],
}


@pytest.mark.parametrize("change", MOVES)
def test_when_a_caller_moves_then_its_address_is_not_sent(change: str) -> None:
    """An address that is not the caller's by then is not sent (I10)."""
    scene = Stage(ledger_first=True)
    scene.store.slow_ledger = True
    expires = ["Expires:2"] if change == "expired" else []
    play(scene, stored(False), connect("a2", "a3"), on_line("a2", *expires, port=1300))
    play(scene, *([leaves("a2")] if expires else []), IS_ASKED, ACCEPTS, says("b", CAN))
    play(scene, *MOVES[change])
    (commit,) = scene.store.pending
    scene.fires(commit, a=GRANTED, b=told())


def test_when_no_status_is_asked_then_consent_is_the_only_question() -> None:
    """Fig. 5 of C. The caller's own share is told of once it is accepted, and not before."""
    play(Stage(ask_status=False), IS_ASKED, says("b", lists("Ia"), b=told(), a=GRANTED))
    scene = Stage(ask_status=False)
    for n in range(16):
        scene.context.sessions.granted(f"S{n}", "Ia", f"Iz{n}", "")
    play(scene, *DENIES, IS_ASKED, says("b", lists("Ia"), a=TOO_MANY))


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
    "no address": [registers("b", "Expires:0"), CALL],
    "unknown": [says("a", query("Ia", "nobody"))],
    "by its list": [on_line("c", "Accept:Create Ix"), says("a", query("Ia", "Ic"))],
    "rejected before": [registers("b", "Reject:Create Ia"), CALL],
    "rejected while asked": [
        IS_ASKED, registers("b", "Reject:Add Ia"), says("b", lists("Ia")),
    ],
    "too often": [*CONSENT_PROMPTS.pair * DENIES, CALL],
}
# fmt: on


class RefusedTests:
    """Whatever it was, the caller learns one thing at one time, and the callee nothing (C6, I6)."""

    @pytest.mark.parametrize("case", REFUSALS)
    def test_one_and_the_same(self, case: str) -> None:
        """*Permission Denied.*, when the time to decide is over, and not a moment before.

        Nothing is sent to either side, and so nothing recorded.
        """
        scene = Stage()
        play(scene, A_TOO)
        begun = scene.clock.seconds()
        play(scene, *REFUSALS[case])
        waited = (scene.clock.seconds() - begun) % PATIENCE
        play(scene, passes(PATIENCE - waited - 0.001), passes(0.001, a=DENIED), passes(60))
        assert scene.store.told == []

    def test_caller_gone(self) -> None:
        """Nothing is left of a refusal once its caller has gone; and who goes away while the callee
        is asked is forgotten, and the callee told nothing.
        """
        scene = Stage()
        play(scene, says("x", query("Ix", "nobody")))
        before = len(scene.clock.getDelayedCalls())
        play(scene, leaves("x"))
        timers = len(scene.clock.getDelayedCalls())
        assert timers < before
        play(scene, IS_ASKED, leaves("a"), says("b", lists("Ia")))
        assert len(scene.clock.getDelayedCalls()) <= timers + 1, "but for the deadlines' own"
        scene.passes(PATIENCE)

    @pytest.mark.parametrize("error", [ServiceUnavailable(), RuntimeError("a bug")])
    def test_resolver_fails(self, error: Exception, logged: Logged) -> None:
        """It refuses like anything else; an unexpected error is in the log."""
        scene, _ = with_resolver()
        play(scene, connect("a"), on_line("b", "Policy:Ask"), fails("lookup", error), CALL, IN_TIME)
        assert len(logged.failures()) == isinstance(error, RuntimeError)

    def test_unavailable_for_callers_that_it_accepts(self) -> None:
        """Where the caller can't be looked up since a part is away, nothing is granted (I3)."""
        scene, _ = with_resolver(ask_status=False)
        play(
            scene, connect("a"), on_line("b", "Policy:Ask"), IS_ASKED,
            fails("lookup", ServiceUnavailable()), says("b", lists("Ia"), a=UNAVAILABLE),
            fails("lookup", CalleeNotFound()), CALL, IN_TIME,
            fails("lookup", None), IS_ASKED,
            fails("lookup", CalleeNotFound()), says("b", lists("Ia"), a=NOT_FOUND),
        )  # fmt: skip


class PolicyTests:
    """The policy is kept, and told to its owner."""

    def test_durable(self) -> None:
        """Policy and rejections are committed before they are acknowledged, and outlive it (I8)."""
        scene = Stage(policy=None)
        lines = ("Policy:Ask", "Reject:Create Ix,@g", "Accept:Create Ia")
        play(scene, stored(False), says("b", register("Ib", *lines)))
        scene.says("x", query("Ix", "Ib"), x=DENIED)
        scene.fires(scene.store.pending[0], b=DONE)
        assert scene.store.commits == [(PermitChange("Ib", ("Ia",), (), ("Ix", "@g"), ASK),)]
        play(Scene(store=scene.store), connect("a"), on_line("b"), *TALK)

    def test_too_long(self) -> None:
        """The two lists share their room, so that they can be told in one message (I15)."""
        scene = Stage()
        names = [f"{n:04}{'x' * 110}" for n in range(500)]
        edits = [f"Add {','.join(names[n : n + 8])}" for n in range(0, 500, 8)]
        scene.registers("b", "Accept:Create", *edits)
        scene.store.commits.clear()
        cause = failed("a list holds at most 60000 bytes")
        scene.says("b", register("Ib", "Reject:Create", *edits[:5]), b=cause)
        play(scene, COMMITTED_NOTHING)

    def test_names_given_by_the_operator(self) -> None:
        """Where there are accounts, it is one that the operator has given it; or refused, alike."""
        scene = Scene(accounts={"Ia": "correct horse", "Ib": "battery staple"})
        result_of(scene.mediator.accounts.add_name("Ia", "taro"))
        result_of(scene.mediator.accounts.add_name("Ib", "hanako"))
        scene.connect("a")
        scene.clients["a"].type(register("Ia", "Password:correct horse"))
        settle(scene.clock)
        play(scene, reads(a=DONE), registers("a", "Name:taro"))
        why = failed("the operator has not given you this name")
        for name in ("hanako", "Ib", "nobody"):
            scene.says("a", register("Ia", f"Name:{name}"), a=why)
