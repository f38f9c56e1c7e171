"""The call: its order, its refusals, and what vanishes or changes in the middle of it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from broker.interfaces import StoreFailed
from broker.messages.errors import ServiceUnavailable
from broker.tables.disclosures import Disclosure
from broker.tables.permits import PermitChange
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
    UNAVAILABLE,
    Scene,
    SlowResolver,
    failed,
    query,
    register,
    to_callee,
    to_caller,
    with_resolver,
    with_store,
)
from tests.mediator.steps import (
    FORGET,
    Step,
    asks,
    calls,
    connect,
    dial,
    fails,
    grants,
    hold,
    holds,
    lasts,
    leaves,
    on_line,
    passes,
    play,
    registers,
    resolved,
    says,
    sessions,
)
from tests.support.clock import settle
from tests.support.reactor import FakeReactor


class Stage(Scene):
    """Ib is on line and accepts Ia; Ia and Ic are connected.

    :ivar resolver: does as a test says
    """

    def __init__(self, **options: Any) -> None:
        clock = FakeReactor()
        self.resolver = SlowResolver(clock)
        super().__init__(clock=clock, resolver=self.resolver, **options)
        self.connect("a", "c")
        self.on_line("b", "Accept:Create Ia")


WITHDRAW: Final = register("Ib", "Accept:Delete Ia")
GRANTED: Final = ACCEPTED + to_caller("Ib")
PERHAPS: Final = "NOTIFY\nSTATUS Perhaps.\n\n"
#: Ia calls Ib, and Ib is asked; or its call waits for something else.
CALL: Final = asks()
CALL_WAITS: Final = says("a", query("Ia", "Ib"))
#: Ib answers, and the call is granted.
GRANT: Final = grants()
NOWHERE: Final = registers("b", "Expires:0")
AWAY: Final = fails("lookup", ServiceUnavailable())
D_TOO: Final = on_line("d", "Accept:Create Ia", port=4)


def reply_waits(answer: str = CAN) -> list[Step]:
    """Ia calls Ib and Id; Id has answered, and Ia's reply waits for Ib's answer."""
    asked = query("Ia", "Ib") + query("Ia", "Id")
    return [D_TOO, says("a", asked, b=STATUS, d=STATUS), says("d", answer)]


def coded(text: str, transaction: str, code: int) -> str:
    """An answer with a transaction."""
    return text[:-1] + f"Transaction:{transaction}\nCode:{code}\n\n"


def watch_writes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, note: Callable[[str, bytes], object]
) -> None:
    """Have each write to a terminal noted, in order: its name, and the bytes."""

    def watched(name: str, write: Callable[[bytes], None], data: bytes) -> None:
        note(name, data)
        write(data)

    for name, client in scene.clients.items():
        write = client.transport.write
        monkeypatch.setattr(client.transport, "write", partial(watched, name, write))


class FiguresTests:
    """The conversation of fig. 12, and of fig. 16."""

    @pytest.mark.parametrize("status", [True, False])
    def test_order(self, status: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """5b to the caller (S1206), 5e to the callee (S1208), 5d to the caller (S1210): A11.

        And the callee has its credentials before the caller learns where to turn.
        """
        scene = Stage(ask_status=status)
        scene.sent.clear()
        written: list[str] = []

        def note(name: str, data: bytes) -> None:
            lines = ("Request Accepted.", "Caller ID", "Callee Address", "STATUS")
            written.extend(f"{name} {line}" for line in lines if line.encode() in data)

        watch_writes(scene, monkeypatch, note)
        scene.clients["a"].type(query("Ia", "Ib"))
        if status:
            scene.clients["b"].type(CAN)
        asked = [("b", "STATUS")] if status else []
        told = [("a", "Request Accepted."), ("b", "Caller ID"), ("a", "Callee Address")]
        assert scene.sent == asked + told
        written.remove("a Request Accepted.")
        assert written == [*(["b STATUS"] if status else []), "b Caller ID", "a Callee Address"]

    def test_order_of_several_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of calls decided in one turn, too, each callee is told before its caller (A11)."""
        scene = Stage()
        play(scene, registers("b", "Accept:Add Ic"), CALL, asks(caller="c"))
        written: list[tuple[str, int]] = []
        watch_writes(
            scene, monkeypatch, lambda name, data: written.append((name, data.count(b"Caller ID")))
        )
        scene.clients["b"].type(CAN + CAN)
        assert written == [("b", 2), ("a", 0), ("c", 0)]

    def test_typed_by_hand(self) -> None:
        """Lower case, bare LF, CR LF, blanks around: the same call, and answers in CR LF (A9)."""
        scene = Stage()
        scene.says("a", "query\r\nidentifier: Ia\r\nCALLEE:\tIb \r\n\r\n", b=STATUS)
        scene.says("b", "notify\nstatus acceptable.\n\n", a=GRANTED, b=to_callee("Ia"))
        scene.clients["c"].type(query("Ic", "Ib"))
        assert scene.clients["c"].bytes() == b"NOTIFY\r\nPermission Denied.\r\n\r\n"

    def test_fresh(self) -> None:
        """Session, passwords and key are new in each call, also of the same pair (A10, A23).

        And in another run of the mediator. No status is asked here, as in the first embodiment.
        """
        drawn: list[str] = []
        for seed in (1, 2):
            scene = Stage(ask_status=False, seed=seed)
            for _ in range(100):
                play(scene, FORGET, says("a", query("Ia", "Ib"), a=GRANTED, b=to_callee("Ia")))
                drawn += scene.drawn.values()
        assert len(drawn) == len(set(drawn)) == 800


#: How a permitted caller comes to be refused: its statement, what happens, and what happens last.
# fmt: off
CAUSES: Final[dict[str, tuple[str, list[Step], Callable[..., Step]]]] = {
    "no address": (
        NOT_FOUND, [NOWHERE], partial(says, "a", query("Ia", "Ib")),
    ),
    "never an address": (
        NOT_FOUND, [connect("d"), registers("d", "Accept:Create Ia")],
        partial(says, "a", query("Ia", "Id")),
    ),
    "busy": (BUSY, [CALL], partial(says, "b", CANT)),
    "no answer": (NOT_CONNECTED, [CALL], partial(passes, 5)),
    "gone": (NOT_CONNECTED, [CALL], partial(leaves, "b")),
    "another answer": (NOT_CONNECTED, [CALL], partial(says, "b", PERHAPS)),
    "a dial fails": (NOT_CONNECTED, [leaves("b"), CALL_WAITS], partial(dial, succeeds=False)),
    "a dial wakes no one": (
        NOT_CONNECTED, [leaves("b"), CALL_WAITS, dial(succeeds=True)], partial(passes, 5),
    ),
}
# fmt: on


class RefusalsTests:
    """A statement for each cause, or one for all (A20)."""

    @pytest.mark.parametrize("uniform", [False, True])
    @pytest.mark.parametrize("cause", CAUSES)
    def test_cause(self, cause: str, uniform: bool) -> None:
        """A permitted caller learns the cause: 5g, 5h, 17d; in the base case 5c (A20, A8, A13)."""
        statement, steps, last = CAUSES[cause]
        scene = Stage(uniform_refusals=uniform)
        play(scene, *steps, last(a=DENIED if uniform else statement))

    def test_uniform_hides_the_rest(self) -> None:
        """Too many sessions and a resolver that is away are 5c, too, in the base case (A20)."""
        scene = Stage(uniform_refusals=True, ask_status=False)
        for n in range(16):
            scene.context.sessions.granted(f"S{n}", "Ia", f"I{n}", "")
        refused = says("a", query("Ia", "Ib"), a=DENIED)
        play(scene, refused, passes(30), AWAY, refused)

    def test_uniform_is_for_calls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A registration's refusal says why even then (A5). What one asks of oneself hides nothing:
        a store that is away is told as such.
        """
        scene, store = with_store(uniform_refusals=True)

        async def fails(whose: str, before: int, most: int) -> list[Disclosure]:
            raise StoreFailed("the server can't read at present")

        monkeypatch.setattr(store, "disclosures", fails)
        play(scene, connect("a"), says("a", register("Ia", "Accept:Add Ib")))
        scene.fires(store.pending[0], StoreFailed("no room"), a=failed("no room"))
        scene.says("a", "QUERY\nIdentifier:Ia\nDISCLOSURES\n\n", a=UNAVAILABLE)

    def test_time_configured(self) -> None:
        """The time is the operator's to set."""
        play(Stage(status_timeout=0.5), CALL, passes(0.5, a=NOT_CONNECTED))

    def test_refused_ones_change_nothing(self) -> None:
        """Refusals of every kind leave the callee as reachable as before (I5, I15)."""
        scene = Stage()
        refusals = [
            CALL, says("b", CANT, a=BUSY), says("c", query("Ic", "Ib"), c=DENIED),
            says("a", query("Ia", "nobody"), a=DENIED),
        ]  # fmt: skip
        play(scene, *100 * refusals, sessions(0), CALL, GRANT)


#: What a callee may be that does not accept Ic.
# fmt: off
CALLEES: Final[dict[str, list[Step]]] = {
    "unknown": [],
    "online": [on_line("b", "Accept:Create Ia")],
    "offline": [on_line("b", "Accept:Create Ia"), leaves("b")],
    "without a list": [on_line("b")],
    "taken off": [on_line("b", "Accept:Create Ia,Ic"), registers("b", "Accept:Delete Ic")],
    "in a call": [on_line("b", "Accept:Create Ia"), calls("a", "b")],
    "being asked": [on_line("b", "Accept:Create Ia"), CALL],
    "expired": [on_line("b", "Accept:Create Ia", "Expires:1"), leaves("b"), passes(2)],
}
# fmt: on


class UniformTests:
    """A caller that is not permitted learns nothing (I1, I6)."""

    @pytest.mark.parametrize("callee", CALLEES)
    @pytest.mark.parametrize("uniform", [False, True])
    def test_same_bytes(self, callee: str, uniform: bool) -> None:
        """Equal bytes at once, after the same work, and the callee hears nothing (I5, I6).

        A look-up that would fail does not show either.
        """
        scene, resolver = with_resolver(uniform_refusals=uniform)
        play(scene, connect("a", "c"), *CALLEES[callee], fails("lookup", RuntimeError("a bug")))
        asked = len(resolver.asked)
        scene.says("c", query("Ic", "Ib"), c=DENIED)
        scene.says("c", "QUERY\nCallee:Ib\n\n", c=DENIED)
        scene.says("c", query("Ic", "Ib", "Transaction:1"), c=coded(DENIED, "1", 403))
        assert (len(resolver.asked), scene.dials) == (asked, [])


OFF: Final = registers("b", "Accept:Delete Ia")
#: What changes while a call is decided, and what becomes of the call.
# fmt: off
CHANGES: Final[dict[str, list[Step]]] = {
    # 5c, whatever else is true (I1, I2, I6, A20).
    "withdrawn while asked, then yes": [CALL, OFF, says("b", CAN, a=DENIED)],
    "withdrawn while asked, then busy": [CALL, OFF, says("b", CANT, a=DENIED)],
    "withdrawn while asked, then nonsense": [CALL, OFF, says("b", PERHAPS, a=DENIED)],
    "withdrawn while asked, then no answer": [CALL, OFF, passes(5, a=DENIED)],
    "withdrawn while asked, then gone": [CALL, OFF, leaves("b", a=DENIED)],
    "withdrawn in the same breath": [CALL, says("b", WITHDRAW + CAN, b=DONE, a=DENIED)],
    "withdrawn over another connection": [
        connect("b2"), CALL, registers("b2", "Accept:Create"), says("b", CAN, a=DENIED),
    ],
    # It is permitted at that moment (I1).
    "withdrawn and given again": [
        CALL, says("b", register("Ib", "Accept:Delete Ia\nAdd Ia"), b=DONE), GRANT,
    ],
    # It is not even asked (I5).
    "withdrawn while looked up": [hold("lookup"), CALL_WAITS, OFF, resolved(a=DENIED)],
    # That there is no address now is only for callers that are permitted (A20, I6).
    "withdrawn while looked up again": [
        CALL, hold("lookup"), on_line("b", port=9), OFF, says("b", CAN), resolved(a=DENIED),
    ],
    # A bare reply that waits behind an earlier one is decided when it can leave (I1, I2).
    "withdrawn while its reply waits": [
        *reply_waits(), registers("d", "Accept:Delete Ia"),
        says("b", CAN, b=to_callee("Ia"), a=GRANTED + DENIED),
    ],
    "withdrawn while its refusal waits": [
        *reply_waits(CANT), registers("d", "Accept:Delete Ia"),
        says("b", CANT, a=BUSY + DENIED),
    ],
    # The address and port sent are those registered at that moment (A7, A8, A22).
    "moved while its reply waits": [
        *reply_waits(), on_line("d", port=5),
        says("b", CANT, a=BUSY + ACCEPTED + to_caller("Id", port=5), d=to_callee("Ia")),
    ],
    "moved while asked": [
        CALL, says("b", register("Ib", "Address:127.0.0.2", "Port:9"), b=DONE),
        says("b", CAN, a=ACCEPTED + to_caller("Ib", "127.0.0.2", 9), b=to_callee("Ia")),
    ],
    "moved while looked up again": [
        CALL, on_line("b", port=2), hold("lookup"), says("b", CAN), on_line("b", port=3),
        resolved(), resolved(a=ACCEPTED + to_caller("Ib", port=3), b=to_callee("Ia")),
    ],
    # Another connection is the active one: the first call's answer does not count there (I12).
    "superseded while asked": [
        connect("b2"), CALL,
        registers("b2", "Address:127.0.0.1", "Port:9", b=SUPERSEDED),
        says("b", CAN, a=NOT_CONNECTED), asks(callee="b2"),
        grants("b2", port=9),
    ],
    # While the newer connection's address is on its way, the older one is the active one again.
    "returned while looked up": [
        connect("b2"),
        registers("b2", "Address:127.0.0.1", "Port:2", b=SUPERSEDED),
        hold("lookup"), CALL_WAITS, leaves("b2"), resolved(b=STATUS), says("b", CAN),
        resolved(a=GRANTED, b=to_callee("Ia")),
    ],
    # An address that is withdrawn, or has expired, is not sent (I10).
    "address withdrawn while asked": [
        CALL, NOWHERE, says("b", CAN, a=NOT_CONNECTED),
    ],
    "address withdrawn over another connection": [
        connect("b2"), CALL, says("b2", register("Ib", "Expires:0"), b2=DONE),
        says("b", CAN, a=NOT_CONNECTED),
    ],
    "address expires while asked": [lasts(3), CALL, passes(3), says("b", CAN, a=NOT_FOUND)],
    "address expires just after": [lasts(3.1), CALL, passes(3), GRANT],
    # That the resolver is away is told to permitted callers alone (A15, A20, I6).
    "resolver away": [
        AWAY, says("a", query("Ia", "Ib"), a=UNAVAILABLE), says("c", query("Ic", "Ib"), c=DENIED),
        fails("lookup", None), CALL,
    ],
    "withdrawn while the resolver is away": [
        CALL, on_line("b", port=9), AWAY, OFF, says("b", CAN, a=DENIED),
    ],
    # The callee has five seconds for its status, not less and not more (A24).
    "answered just in time": [CALL, passes(4.99), GRANT],
    "answered too late": [
        CALL, passes(4.99), passes(0.01, a=NOT_CONNECTED), says("b", CAN),
    ],
    # Look-up, reaching and status together have these five seconds.
    "looked up for long": [
        hold("lookup"), CALL_WAITS, passes(3), resolved(b=STATUS), passes(2, a=NOT_CONNECTED),
    ],
    # Then, too, the caller has an answer in time (A15).
    "looked up for too long": [hold("lookup"), CALL_WAITS, passes(5, a=NOT_CONNECTED)],
    # A terminal that accepts itself can call itself, over one connection.
    "calls itself": [
        on_line("a", "Accept:Create Ia"), asks(callee="a"),
        says("a", CAN, a=ACCEPTED + to_callee("Ia") + to_caller("Ia")),
    ],
    # A permit holds in one direction alone (A9).
    "called back": [on_line("a"), says("b", query("Ib", "Ia"), b=DENIED), CALL],
}
# fmt: on


class ChangedMeanwhileTests:
    """What was true when a call began must be true when both sides are told (I1, I2)."""

    @pytest.mark.parametrize("change", CHANGES)
    def test_change(self, change: str) -> None:
        """The call becomes what its row says; there is a session only if it was granted."""
        scene = Stage()
        play(scene, *CHANGES[change])
        assert len(scene.context.sessions) == ("session" in scene.drawn)
        assert scene.dials == []

    def test_withdrawn_while_looked_up_without_status(self) -> None:
        """Without a status query too (I2)."""
        play(Stage(ask_status=False), *CHANGES["withdrawn while looked up"])

    @pytest.mark.parametrize("withdrawn", [True, False])
    @pytest.mark.parametrize("answer", [CAN, CANT])
    def test_late_while_its_reply_waits(self, answer: str, withdrawn: bool) -> None:
        """So it is even where that is after the time allowed (I1, I2)."""
        scene, store = with_store(PermitChange("Ib", ("Ia",)))
        asked = register("Ia", "Accept:Add Ix") + query("Ia", "Ib")
        play(scene, connect("a"), on_line("b"), says("a", asked, b=STATUS))
        play(scene, says("b", answer), passes(10))
        if withdrawn:
            scene.says("b", WITHDRAW)
            scene.fires(store.pending[1], b=DONE)
            scene.fires(store.pending[0], a=DONE + DENIED)
        elif answer == CAN:
            scene.fires(store.pending[0], a=DONE + GRANTED, b=to_callee("Ia"))
        else:
            scene.fires(store.pending[0], a=DONE + BUSY)


def nothing_open(scene: Scene) -> None:
    """No call is being decided and no session is left."""
    assert set(scene.kept()) <= {
        "ConnectionRegistry._connections",
        "ConnectionRegistry._active",
        "WakeUpDialer._dialled",
        "WakeUpDialer._notified",
    }
    for client in scene.clients.values():
        assert client.protocol.receiver._questions is None


def ends_input(who: str, text: str, **reads: str) -> Step:
    """A terminal types this, and ends its input in the same turn."""

    def step(scene: Scene) -> None:
        scene.clients[who].feed(text.encode())
        scene.clients[who].end_input()
        scene.reads(**reads)

    return step


#: Who goes while a call is decided; nothing of it is left at once, and after each test.
# fmt: off
VANISHING: Final[dict[str, list[Step]]] = {
    # A late answer settles nothing.
    "caller while callee is asked": [CALL, leaves("a"), nothing_open, says("b", CAN + CAN)],
    # The callee is not even asked.
    "caller while callee is looked up": [
        hold("lookup"), CALL_WAITS, leaves("a"), nothing_open, resolved(),
    ],
    "caller while its reply waits": [*reply_waits(), leaves("a"), nothing_open, says("b", CAN)],
    # The session ends by itself, unspent, in 30 s.
    "caller with its credentials": [
        calls("a", "b"), leaves("a"), passes(29.9), sessions(1), passes(0.1), nothing_open,
    ],
    # It is dialled at its address.
    "callee while looked up": [
        hold("lookup"), CALL_WAITS, leaves("b"), resolved(), dial(succeeds=False, a=NOT_CONNECTED),
        nothing_open,
    ],
    # 5h at once, and nothing is sent (A24).
    "callee while asked": [CALL, leaves("b", a=NOT_CONNECTED), nothing_open],
    "callee while looked up again": [
        CALL, on_line("b", port=2), hold("lookup"), says("b", CAN), leaves("b"),
        resolved(a=NOT_CONNECTED), nothing_open,
    ],
    "callee while the reply waits": [
        *reply_waits(), leaves("d"), says("b", CANT, a=BUSY + NOT_CONNECTED), nothing_open,
    ],
    # The caller is not answered, and the callee, once it comes, not asked.
    "caller while callee is dialled": [
        leaves("b"), CALL_WAITS, leaves("a"), dial(succeeds=True), nothing_open, on_line("b"),
    ],
    "caller while callee is about to come": [
        leaves("b"), CALL_WAITS, dial(succeeds=True), leaves("a"), nothing_open, on_line("b"),
    ],
    "caller while callee connects": [
        leaves("b"), CALL_WAITS, dial(succeeds=True), connect("b"), leaves("a"), nothing_open,
        registers("b", "Address:127.0.0.1"),
    ],
    # It calls itself, and is forgotten as caller and as callee.
    "both at once": [
        on_line("a", "Accept:Create Ia", "Expires:9"), asks(callee="a"), leaves("a"), nothing_open,
        passes(9), holds(lambda scene: scene.address("Ia") is None),
    ],
    # A caller that only stops sending, as nc does, is answered, and then closed on.
    "caller with its input ended": [
        ends_input("a", query("Ia", "Ib"), b=STATUS), GRANT,
        holds(lambda scene: scene.clients.pop("a").closed),
    ],
    # It has answered, and is told.
    "callee with its input ended": [CALL, ends_input("b", CAN, a=GRANTED, b=to_callee("Ia"))],
    # This call is lost, the next is not.
    "callee, and comes back": [CALL, leaves("b", a=NOT_CONNECTED), on_line("b"), calls("a", "b")],
}
# fmt: on


class VanishingTests:
    """A terminal goes in the middle of it: nothing stays behind (I15)."""

    @pytest.mark.parametrize("who", VANISHING)
    def test_goes(self, who: str) -> None:
        """Nothing is left of a call whose caller or callee goes."""
        play(Stage(), *VANISHING[who])

    def test_callee_is_being_closed_on(self) -> None:
        """A callee that has answered, and whose connection is closing: 5h, nothing sent."""
        scene = Stage()
        play(scene, *reply_waits())
        scene.clients["d"].transport.stop_reading_peer()
        play(scene, says("d", PERMITS), ends_input("d", ""))
        assert not scene.clients["d"].closed
        play(scene, says("b", CANT, a=BUSY + NOT_CONNECTED), sessions(0))

    def test_many_calls_leave_no_timers(self) -> None:
        """Timers don't grow with calls (I15)."""
        scene = Stage()
        scene.calls("a", "b")
        timers = len(scene.clock.getDelayedCalls())
        play(scene, *50 * [FORGET, calls("a", "b"), CALL, says("b", CANT, a=BUSY)], sessions(1))
        assert len(scene.clock.getDelayedCalls()) == timers


PERMITS: Final = "QUERY\nPERMITS\n\n"
#: Ib uses transactions, and so do its questions.
B_MARKS: Final = says(
    "b", f"{PERMITS[:-1]}Transaction:x\n\n", b=coded("NOTIFY\nAccept:Create Ia\n\n", "x", 200)
)
ADDS_IC: Final = registers("b", "Accept:Add Ic")


def marked(text: str, transaction: str) -> str:
    """A question or an answer with a transaction."""
    return f"{text[:-1]}Transaction:{transaction}\n\n"


#: Which reply belongs to which request, and which answer to which question (I11).
# fmt: off
REPLIES: Final[dict[str, list[Step]]] = {
    # Bare replies leave in the order of their requests, whichever is ready first.
    "in order": [
        D_TOO,
        says(
            "a", query("Ia", "Ib") + query("Ia", "Ix") + PERMITS + query("Ia", "Id"),
            b=STATUS, d=STATUS,
        ),
        says("d", CAN),
        says(
            "b", CANT, d=to_callee("Ia"),
            a=BUSY + DENIED + "NOTIFY\nAccept:Create\n\n" + ACCEPTED + to_caller("Id", port=4),
        ),
    ],
    # Replies with a transaction leave when they are ready: both of a call have it, with a code.
    "as they are ready": [
        D_TOO,
        says(
            "a", query("Ia", "Ib", "Transaction:1") + query("Ia", "Id", "Transaction:t-7"),
            b=STATUS, d=STATUS,
        ),
        says(
            "d", CAN, d=to_callee("Ia"),
            a=coded(ACCEPTED, "t-7", 100) + to_caller("Id", port=4, transaction="t-7"),
        ),
        says("b", CANT, a=coded(BUSY, "1", 486)),
    ],
    # An answer with a transaction settles that question, in any order.
    "answers with a transaction": [
        B_MARKS, ADDS_IC,
        says("a", query("Ia", "Ib"), b=marked(STATUS, "1")),
        says("c", query("Ic", "Ib"), b=marked(STATUS, "2")),
        *(says("b", marked(CAN, wrong)) for wrong in ("3", "x", "1.", "0")),
        says("b", marked(CAN, "2"), c=GRANTED, b=to_callee("Ic")),
        says("b", marked(CANT, "2")), says("b", marked(CANT, "1"), a=BUSY),
    ],
    # Answers to no question do nothing, before login and after.
    "nothing was asked": [
        connect("e"),
        *(
            says(name, text)
            for text in (
                CAN, CANT, ACCEPTED, DENIED, DONE, "NOTIFY\n\n", "NOTIFY\nAccept:Create Ia\n\n",
                marked(CAN, "1"), SUPERSEDED,
            )
            for name in "abce"
        ),
        CALL, GRANT, says("b", CAN),
    ],
    # Only the connection that is asked can answer, not the callee's other one; and only the
    # connection that called reads the reply.
    "other connections": [
        connect("a2", "b2"), registers("a2"), registers("b2"), CALL,
        *(says(name, CAN) for name in ("b2", "a", "a2", "c")), GRANT,
    ],
}
# fmt: on


class RepliesTests:
    """Which reply belongs to which request (I11)."""

    @pytest.mark.parametrize("case", REPLIES)
    def test_replies(self, case: str) -> None:
        """Each reads its own, in the order that it can tell."""
        play(Stage(), *REPLIES[case])

    def test_as_many_as_may_be(self) -> None:
        """64 bare calls, all but the first decided while they wait for it, leave in order (I11)."""
        scene = Stage()
        play(scene, ADDS_IC, D_TOO, registers("a"))
        asked = query("Ia", "Ib") + 63 * query("Ia", "Id")
        scene.says("a", asked, b=STATUS, d=63 * STATUS)
        scene.says("d", 63 * CAN)
        scene.clients["b"].type(CANT)
        first, *rest = scene.clients["a"].received()
        assert first.statement == "Callee is Busy."
        assert [message.statement for message in rest] == 63 * ["Request Accepted.", ""]
        assert len({message.get("Session") for message in rest[1::2]}) == 63
        assert len(scene.context.sessions) == 1
        assert len(scene.clients["d"].received()) == 63


BUG: Final = RuntimeError("inner detail")


class FaultsTests:
    """What was not foreseen is logged, and answered without detail (I3, I18, I24)."""

    @pytest.mark.parametrize(
        ("question", "text"),
        [("lookup", query("Ia", "Ib")), ("register", register("Ia", "Address:127.0.0.1"))],
    )
    def test_in_the_resolver(self, question: str, text: str, logged: Logged) -> None:
        """An exception there refuses, shows nothing, and closes no connection (I3, I24)."""
        scene = Stage()
        play(scene, fails(question, BUG), says("a", text, a=UNAVAILABLE))
        [logged_once] = logged.failures()
        assert "inner detail" in logged_once
        assert scene.context.connections.active("Ia") is None
        play(scene, fails(question, None), CALL, GRANT)

    @pytest.mark.parametrize("error", [ServiceUnavailable(), BUG])
    def test_in_the_resolver_when_reach_returns(self, error: Exception, logged: Logged) -> None:
        """And when an older connection becomes the active one again: only the log shows it."""
        scene = Stage()
        play(scene, connect("b2"), on_line("b"))
        scene.registers("b2", "Address:127.0.0.1", "Port:2", b=SUPERSEDED)
        play(scene, fails("register", error), leaves("b2"))
        assert len(logged.failures()) == isinstance(error, RuntimeError)
        assert any("did not take an address" in text for text in logged.texts())

    def test_in_the_store(self, logged: Logged) -> None:
        """And in the store; the next change goes on (I3)."""
        scene, store = with_store(PermitChange("Ib", ("Ia",)))
        play(scene, connect("b"), says("b", register("Ib", "Accept:Add Ix")))
        scene.fires(store.pending[0], BUG, b=UNAVAILABLE)
        assert len(logged.failures()) == 1
        scene.says("b", register("Ib", "Accept:Add Iy"))
        scene.fires(store.pending[1], b=DONE)
        assert scene.context.permits.table.accepted("Ib") == ("Ia", "Iy")

    def test_in_the_randomness(self, logged: Logged) -> None:
        """Without randomness there is no call, and nothing was told (I3, A10)."""
        scene = Stage()

        def broken(count: int) -> bytes:
            raise OSError("no randomness")

        object.__setattr__(scene.context, "randomness", broken)
        play(scene, CALL, says("b", CAN, a=UNAVAILABLE), sessions(0))
        assert len(logged.failures()) == 1

    def test_peers_names_in_the_log(self, logged: Logged) -> None:
        """What a peer is called can make no line in the log and no escape (I19)."""
        scene = Scene()
        name = "Ib\u00a0\u3000\u200d"[:4]
        scene.connect("b1", "b2")
        scene.says("b1", register(name, "Address:127.0.0.1"), b1=DONE)
        again = register(name, "Address:127.0.0.1")
        scene.says("b2", again, b2=DONE, b1=SUPERSEDED)
        assert not any("\n" in text or "\u00a0" in text for text in logged.texts())
        assert any("now reached over a connection" in text for text in logged.texts())

    def test_secrets_in_faults(self, logged: Logged) -> None:
        """A fault right after credentials were made leaves none of them in the log (I18)."""
        scene = Stage()
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        seen: list[str] = []
        granted = scene.context.sessions.granted

        def fail(identifier: str, caller: str, callee: str, permit_entry: str) -> None:
            granted(identifier, caller, callee, permit_entry)
            seen.append(identifier)
            raise RuntimeError("a bug")

        scene.context.sessions.granted = fail  # type: ignore[method-assign]
        scene.says("b", CAN, a=UNAVAILABLE)
        settle(scene.clock)
        [text] = logged.failures()
        assert "a bug" in text
        assert seen[0] not in text
        assert not any(
            "draw_credentials(" in line and "Credentials(" in line for line in text.split("\n")
        )


# Nothing is awaited between ``recheck`` and ``tell``, in any handler of calls (I1, I2).

MEDIATOR: Final = Path(__file__).resolve().parent.parent.parent / "broker" / "mediator"

BROKEN: Final = """
async def handle(attempt):
    permitted = attempt.recheck()
    await attempt.something()
    attempt.tell(permitted, {}, None)
"""


def tells(source: str) -> list[tuple[str, bool]]:
    """Each function that tells: its name, and whether it awaits after the last ``permitted =``."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.AsyncFunctionDef):
            continue
        nodes = sorted(
            (node for node in ast.walk(function) if isinstance(node, ast.stmt | ast.expr)),
            key=lambda node: node.lineno,
        )
        for tell in nodes:
            if isinstance(tell, ast.Call) and getattr(tell.func, "attr", "") == "tell":
                assert getattr(tell.args[0], "id", "") == "permitted"
                rechecked = max(
                    node.end_lineno or 0
                    for node in nodes
                    if isinstance(node, ast.Assign)
                    and getattr(node.targets[0], "id", "") == "permitted"
                )
                awaits = [node.lineno for node in nodes if isinstance(node, ast.Await)]
                late = any(rechecked < line <= tell.lineno for line in awaits)
                found.append((function.name, late))
    return found


def test_every_handler() -> None:
    """What it tells is what it found in the turn in which it tells it; no other module tells."""
    sources = {path.stem: path.read_text(encoding="utf-8") for path in MEDIATOR.glob("*.py")}
    found = {name: tells(text) for name, text in sources.items() if ".tell(permitted" in text}
    assert found == {"call": [("_mediate", False)], "connect_back": [("_connect", False)]}


def test_it_would_be_found() -> None:
    """An await in between is noticed."""
    assert tells(BROKEN) == [("handle", True)]
