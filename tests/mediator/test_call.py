"""The call: its order, its refusals, and what vanishes or changes in the middle of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import pytest

from broker.interfaces import StoreFailed
from broker.messages.errors import ServiceUnavailable
from broker.tables.disclosures import Disclosure
from broker.tables.grants import PASSWORD_ALPHABET
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
    query,
    register,
    to_callee,
    to_caller,
    with_resolver,
    with_store,
)
from tests.mediator.steps import (
    Step,
    calls,
    connect,
    dial,
    hold,
    lasts,
    leaves,
    on_line,
    passes,
    play,
    resolved,
    says,
)
from tests.support.clock import settle


def stage(**options: object) -> Scene:
    """Ib is on line and accepts Ia; Ia and Ic are connected. Its resolver does as a test says."""
    return stage_and_resolver(**options)[0]


def stage_and_resolver(**options: object) -> tuple[Scene, SlowResolver]:
    """The same, with that resolver."""
    scene, resolver = with_resolver(**options)
    scene.connect("a", "c")
    scene.on_line("b", "Accept:Create Ia")
    return scene, resolver


WITHDRAW: Final = register("Ib", "Accept:Delete Ia")
GRANTED: Final = ACCEPTED + to_caller("Ib")
PERHAPS: Final = "NOTIFY\nSTATUS Perhaps.\n\n"
#: Ia calls Ib, and Ib is asked; or its call waits for something else.
CALL: Final = says("a", query("Ia", "Ib"), b=STATUS)
CALL_WAITS: Final = says("a", query("Ia", "Ib"))
#: Ib answers, and the call is granted.
GRANT: Final = says("b", CAN, a=GRANTED, b=to_callee("Ia"))


def reply_waits(answer: str = CAN) -> list[Step]:
    """Ia calls Ib and Id; Id has answered, and Ia's reply waits for Ib's answer."""
    return [
        on_line("d", "Accept:Create Ia", port=4),
        says("a", query("Ia", "Ib") + query("Ia", "Id"), b=STATUS, d=STATUS),
        says("d", answer),
    ]


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

    def test_with_status(self) -> None:
        """Each reads what the figures print, and no other terminal anything (A9, A10, A13)."""
        scene = stage()
        play(scene, CALL, GRANT)

    def test_without_status(self) -> None:
        """The first embodiment asks no status (A9, A10)."""
        scene = stage(ask_status=False)
        scene.says("a", query("Ia", "Ib"), a=ACCEPTED + to_caller("Ib"), b=to_callee("Ia"))

    @pytest.mark.parametrize("status", [True, False])
    def test_order(self, status: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """5b to the caller (S1206), 5e to the callee (S1208), 5d to the caller (S1210): A11.

        And the callee has its credentials before the caller learns where to turn.
        """
        scene = stage(ask_status=status)
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
        scene = stage()
        scene.says("b", register("Ib", "Accept:Add Ic"), b=DONE)
        play(scene, CALL, says("c", query("Ic", "Ib"), b=STATUS))
        written: list[tuple[str, int]] = []
        watch_writes(
            scene, monkeypatch, lambda name, data: written.append((name, data.count(b"Caller ID")))
        )
        scene.clients["b"].type(CAN + CAN)
        assert written == [("b", 2), ("a", 0), ("c", 0)]

    def test_with_a_transaction(self) -> None:
        """A transaction comes back in both replies, with a code each; the status has its own (I11).

        The callee has used a transaction before, and so has the question.
        """
        scene = Scene()
        scene.connect("a", "b")
        lines = ("Accept:Add Ia", "Address:127.0.0.1", "Transaction:x")
        scene.clients["b"].type(register("Ib", *lines))
        assert scene.clients["b"].received()[0].transaction == "x"
        asked = "QUERY\nSTATUS\nTransaction:1\n\n"
        scene.says("a", query("Ia", "Ib", "Transaction:t-7"), b=asked)
        first = "NOTIFY\nRequest Accepted.\nTransaction:t-7\nCode:100\n\n"
        answer = "NOTIFY\nSTATUS Acceptable.\nTransaction:1\n\n"
        told = first + to_caller("Ib", transaction="t-7")
        scene.says("b", answer, a=told, b=to_callee("Ia"))

    def test_refused_with_a_transaction(self) -> None:
        """Each refusal carries the transaction and its code (A20, I11)."""
        scene = stage()
        end = "Transaction:t\nCode:{}\n\n"
        ask = query("Ia", "Ib", "Transaction:t")
        denied = "NOTIFY\nPermission Denied.\n" + end.format(403)
        scene.says("c", query("Ic", "Ib", "Transaction:t"), c=denied)
        scene.says("a", ask, b=STATUS)
        scene.says("b", CANT, a="NOTIFY\nCallee is Busy.\n" + end.format(486))
        scene.says("a", ask, b=STATUS)
        scene.passes(5, a="NOTIFY\nCallee not Connected.\n" + end.format(480))
        scene.says("b", register("Ib", "Expires:0"), b=DONE)
        scene.says("a", ask, a="NOTIFY\nCallee not Found.\n" + end.format(404))

    def test_typed_by_hand(self) -> None:
        """Lower case, bare LF, CR LF, blanks around: the same call, and answers in CR LF (A9)."""
        scene = stage()
        scene.says("a", "query\r\nidentifier: Ia\r\nCALLEE:\tIb \r\n\r\n", b=STATUS)
        scene.says(
            "b", "notify\nstatus acceptable.\n\n", a=ACCEPTED + to_caller("Ib"), b=to_callee("Ia")
        )
        scene.clients["c"].type(query("Ic", "Ib"))
        assert scene.clients["c"].bytes() == b"NOTIFY\r\nPermission Denied.\r\n\r\n"

    def test_address_and_port(self) -> None:
        """The caller is told the address and the port that the callee registered (A8, A22)."""
        scene = Scene()
        scene.connect("a", host="202.224.186.9")
        lines = ("Accept:Create Ia", "Address:202.224.186.83", "Port:5060")
        scene.new_says("b", register("Ib", *lines), DONE, host="202.224.186.82")
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        told = ACCEPTED + to_caller("Ib", "202.224.186.83", 5060)
        scene.says("b", CAN, a=told, b=to_callee("Ia"))

    def test_oneself(self) -> None:
        """A terminal that accepts itself can call itself, over one connection."""
        scene = Scene()
        scene.on_line("a", "Accept:Create Ia")
        scene.says("a", query("Ia", "Ia"), a=STATUS)
        scene.says("a", CAN, a=ACCEPTED + to_callee("Ia") + to_caller("Ia"))

    def test_both_ways(self) -> None:
        """A permit holds in one direction alone (A9)."""
        scene = stage()
        scene.on_line("a")
        scene.says("b", query("Ib", "Ia"), b=DENIED)
        scene.says("a", query("Ia", "Ib"), b=STATUS)

    def test_fresh(self) -> None:
        """Session, passwords and key are new in each call, also of the same pair (A10, A23).

        And shaped as they should be: all kinds of characters, two passwords that differ.
        """
        scene = stage(ask_status=False)
        drawn: list[str] = []
        letters: set[str] = set()
        for _ in range(200):
            scene.forget()
            scene.says("a", query("Ia", "Ib"), a=ACCEPTED + to_caller("Ib"), b=to_callee("Ia"))
            drawn += scene.drawn.values()
            letters.update(scene.drawn["password"])
        assert len(drawn) == len(set(drawn)) == 800
        assert letters == set(PASSWORD_ALPHABET.decode())

    def test_not_from_before(self) -> None:
        """Another run of the mediator, another randomness: nothing comes again (A10)."""
        drawn: list[str] = []
        for seed in (1, 2):
            scene = stage(ask_status=False, seed=seed)
            scene.says("a", query("Ia", "Ib"), a=ACCEPTED + to_caller("Ib"), b=to_callee("Ia"))
            drawn += scene.drawn.values()
        assert len(set(drawn)) == 8


#: How a permitted caller comes to be refused: its statement, what happens, and what happens last.
CAUSES: Final[dict[str, tuple[str, list[Step], Callable[..., Step]]]] = {
    "no address": (
        NOT_FOUND,
        [says("b", register("Ib", "Expires:0"), b=DONE)],
        partial(says, "a", query("Ia", "Ib")),
    ),
    "never an address": (
        NOT_FOUND,
        [connect("d"), says("d", register("Id", "Accept:Create Ia"), d=DONE)],
        partial(says, "a", query("Ia", "Id")),
    ),
    "busy": (BUSY, [CALL], partial(says, "b", CANT)),
    "no answer": (NOT_CONNECTED, [CALL], partial(passes, 5)),
    "gone": (NOT_CONNECTED, [CALL], partial(leaves, "b")),
    "another answer": (NOT_CONNECTED, [CALL], partial(says, "b", PERHAPS)),
    "a dial fails": (NOT_CONNECTED, [leaves("b"), CALL_WAITS], partial(dial, succeeds=False)),
    "a dial wakes no one": (
        NOT_CONNECTED,
        [leaves("b"), CALL_WAITS, dial(succeeds=True)],
        partial(passes, 5),
    ),
}


class RefusalsTests:
    """A statement for each cause, or one for all (A20)."""

    @pytest.mark.parametrize("uniform", [False, True])
    @pytest.mark.parametrize("cause", CAUSES)
    def test_cause(self, cause: str, uniform: bool) -> None:
        """A permitted caller learns the cause: 5g, 5h, 17d; in the base case 5c (A20, A8, A13)."""
        statement, steps, last = CAUSES[cause]
        scene = stage(uniform_refusals=uniform)
        play(scene, *steps, last(a=DENIED if uniform else statement))

    def test_uniform_hides_the_rest(self) -> None:
        """Too many sessions and a resolver that is away are 5c, too, in the base case (A20)."""
        scene, resolver = with_resolver(uniform_refusals=True, ask_status=False)
        scene.connect("a")
        names = [f"c{n}" for n in range(17)]
        scene.connect("c")
        for name in names[:16]:
            scene.connect(name)
            scene.says(
                name, register(name, "Accept:Create Ia", "Address:127.0.0.1"), **{name: DONE}
            )
        scene.on_line("b", "Accept:Create Ia")
        for name in names[:16]:
            scene.forget()
            told = ACCEPTED + to_caller(name)
            scene.says("a", query("Ia", name), a=told, **{name: to_callee("Ia")})
        scene.says("a", query("Ia", "Ib"), a=DENIED)
        scene.passes(30)
        resolver.errors["lookup"] = ServiceUnavailable()
        scene.says("a", query("Ia", "Ib"), a=DENIED)

    def test_uniform_is_for_calls(self) -> None:
        """A registration's refusal says why even then (A5)."""
        scene, store = with_store(uniform_refusals=True)
        scene.connect("a")
        scene.says("a", register("Ia", "Accept:Add Ib"))
        scene.fires(
            store.pending[0],
            StoreFailed("no room"),
            a="NOTIFY\nRegistration Failed.\nCause:no room\n\n",
        )

    def test_uniform_names_a_callee(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What one asks of oneself hides nothing: a store that is away is told as such."""
        scene, store = with_store(uniform_refusals=True)

        async def fails(whose: str, before: int, most: int) -> list[Disclosure]:
            raise StoreFailed("the server can't read at present")

        monkeypatch.setattr(store, "disclosures", fails)
        scene.new_says("a", "QUERY\nIdentifier:Ia\nDISCLOSURES\n\n", UNAVAILABLE)

    def test_time_allowed(self) -> None:
        """The callee has five seconds for its status, not less and not more (A24)."""
        scene = stage()
        play(scene, CALL, passes(4.99), GRANT)
        play(scene, CALL, passes(4.99), passes(0.01, a=NOT_CONNECTED), says("b", CAN))

    def test_time_configured(self) -> None:
        """The time is the operator's to set."""
        scene = stage(status_timeout=0.5)
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.passes(0.5, a=NOT_CONNECTED)

    def test_time_in_all(self) -> None:
        """Look-up, reaching and status together have these five seconds."""
        scene, resolver = stage_and_resolver()
        play(scene, hold("lookup"), CALL_WAITS, passes(3), resolved(b=STATUS))
        play(scene, passes(2, a=NOT_CONNECTED))
        assert resolver.held == []

    def test_a_resolver_that_never_answers(self) -> None:
        """Then, too, the caller has an answer in time (A15)."""
        play(stage(), hold("lookup"), CALL_WAITS, passes(5, a=NOT_CONNECTED))

    def test_resolver_away(self) -> None:
        """A resolver that is away is told as such, to a permitted caller alone (A15, I6)."""
        scene, resolver = stage_and_resolver()
        resolver.errors["lookup"] = ServiceUnavailable()
        scene.says("a", query("Ia", "Ib"), a=UNAVAILABLE)
        scene.says("c", query("Ic", "Ib"), c=DENIED)
        resolver.errors.clear()
        scene.says("a", query("Ia", "Ib"), b=STATUS)

    def test_refused_ones_change_nothing(self) -> None:
        """Refusals of every kind leave the callee as reachable as before (I5, I15)."""
        scene = stage()
        for _ in range(100):
            scene.says("a", query("Ia", "Ib"), b=STATUS)
            scene.says("b", CANT, a=BUSY)
            scene.says("c", query("Ic", "Ib"), c=DENIED)
            scene.says("a", query("Ia", "nobody"), a=DENIED)
        assert len(scene.context.sessions) == 0
        scene.calls("a", "b")


#: What a callee may be that does not accept Ic.
# fmt: off
CALLEES: Final[dict[str, list[Step]]] = {
    "unknown": [],
    "online": [on_line("b", "Accept:Create Ia")],
    "offline": [on_line("b", "Accept:Create Ia"), leaves("b")],
    "without a list": [on_line("b")],
    "taken off": [
        on_line("b", "Accept:Create Ia,Ic"), says("b", register("Ib", "Accept:Delete Ic"), b=DONE),
    ],
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
        """Equal bytes at once, after the same work, and the callee hears nothing (I5, I6)."""
        scene, resolver = with_resolver(uniform_refusals=uniform)
        scene.connect("a", "c")
        play(scene, *CALLEES[callee])
        asked = len(resolver.asked)
        scene.says("c", query("Ic", "Ib"), c=DENIED)
        scene.says("c", "QUERY\nCallee:Ib\n\n", c=DENIED)
        told = "NOTIFY\nPermission Denied.\nTransaction:1\nCode:403\n\n"
        scene.says("c", query("Ic", "Ib", "Transaction:1"), c=told)
        assert len(resolver.asked) == asked
        assert scene.dials == []

    def test_resolver_away(self) -> None:
        """A look-up that would fail does not show either (I6)."""
        scene, resolver = with_resolver()
        resolver.errors["lookup"] = RuntimeError("a bug")
        scene.connect("c")
        scene.says("c", query("Ic", "Ib"), c=DENIED)


OFF: Final = says("b", WITHDRAW, b=DONE)
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
        connect("b2"), CALL, says("b2", register("Ib", "Accept:Create"), b2=DONE),
        says("b", CAN, a=DENIED),
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
        *reply_waits(), says("d", register("Id", "Accept:Delete Ia"), d=DONE),
        says("b", CAN, b=to_callee("Ia"), a=GRANTED + DENIED),
    ],
    "withdrawn while its refusal waits": [
        *reply_waits(CANT), says("d", register("Id", "Accept:Delete Ia"), d=DONE),
        says("b", CANT, a=BUSY + DENIED),
    ],
    # The address sent is the one at that moment (A7).
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
        says("b2", register("Ib", "Address:127.0.0.1", "Port:9"), b2=DONE, b=SUPERSEDED),
        says("b", CAN, a=NOT_CONNECTED), says("a", query("Ia", "Ib"), b2=STATUS),
        says("b2", CAN, b2=to_callee("Ia"), a=ACCEPTED + to_caller("Ib", port=9)),
    ],
    # While the newer connection's address is on its way, the older one is the active one again.
    "returned while looked up": [
        connect("b2"),
        says("b2", register("Ib", "Address:127.0.0.1", "Port:2"), b2=DONE, b=SUPERSEDED),
        hold("lookup"), CALL_WAITS, leaves("b2"), resolved(b=STATUS), says("b", CAN),
        resolved(a=GRANTED, b=to_callee("Ia")),
    ],
    # An address that is withdrawn, or has expired, is not sent (I10).
    "address withdrawn while asked": [
        CALL, says("b", register("Ib", "Expires:0"), b=DONE), says("b", CAN, a=NOT_CONNECTED),
    ],
    "address withdrawn over another connection": [
        connect("b2"), CALL, says("b2", register("Ib", "Expires:0"), b2=DONE),
        says("b", CAN, a=NOT_CONNECTED),
    ],
    "address expires while asked": [lasts(3), CALL, passes(3), says("b", CAN, a=NOT_FOUND)],
    "address expires just after": [lasts(3.1), CALL, passes(3), GRANT],
}
# fmt: on


class ChangedMeanwhileTests:
    """What was true when a call began must be true when both sides are told (I1, I2)."""

    @pytest.mark.parametrize("change", CHANGES)
    def test_change(self, change: str) -> None:
        """The call becomes what its row says; there is a session only if it was granted."""
        scene = stage()
        play(scene, *CHANGES[change])
        assert len(scene.context.sessions) == ("session" in scene.drawn)
        assert scene.dials == []

    def test_expired_address(self) -> None:
        """An address that has expired is neither sent nor dialled (I10)."""
        scene = Scene()
        play(scene, on_line("b", "Accept:Create Ia", "Expires:60"), leaves("b"), passes(60))
        scene.new_says("a", query("Ia", "Ib"), NOT_FOUND)
        assert scene.dials == []

    def test_withdrawn_while_looked_up_without_status(self) -> None:
        """Without a status query too (I2)."""
        play(stage(ask_status=False), *CHANGES["withdrawn while looked up"])

    def test_withdrawn_while_the_resolver_is_away(self) -> None:
        """That the resolver is away is only for callers that are permitted (A20, I6)."""
        scene = stage()
        resolver: Any = scene.broker.resolver
        play(scene, CALL, on_line("b", port=9))
        resolver.errors["lookup"] = ServiceUnavailable()
        play(scene, OFF, says("b", CAN, a=DENIED))

    @pytest.mark.parametrize("withdrawn", [True, False])
    @pytest.mark.parametrize("answer", [CAN, CANT])
    def test_late_while_its_reply_waits(self, answer: str, withdrawn: bool) -> None:
        """So it is even where that is after the time allowed (I1, I2)."""
        scene, store = with_store(PermitChange("Ib", ("Ia",)))
        scene.connect("a")
        scene.on_line("b")
        scene.says("a", register("Ia", "Accept:Add Ix") + query("Ia", "Ib"), b=STATUS)
        scene.says("b", answer)
        scene.passes(10)
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
        calls("a", "b"), leaves("a"), passes(29.9),
        lambda scene: len(scene.context.sessions) == 1 or pytest.fail("no session"), passes(0.1),
        nothing_open,
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
    # This call is lost, the next is not.
    "callee, and comes back": [CALL, leaves("b", a=NOT_CONNECTED), on_line("b"), calls("a", "b")],
}
# fmt: on


class VanishingTests:
    """A terminal goes in the middle of it: nothing stays behind (I15)."""

    @pytest.mark.parametrize("who", VANISHING)
    def test_goes(self, who: str) -> None:
        """Nothing is left of a call whose caller or callee goes."""
        play(stage(), *VANISHING[who])

    @pytest.mark.parametrize("step", range(3))
    def test_caller_while_dialled(self, step: int) -> None:
        """The caller goes while the callee is dialled, or after: the callee is not waited for."""
        scene = stage()
        play(scene, leaves("b"), CALL_WAITS)
        if step == 0:
            scene.leaves("a")
        scene.dials[0].accept()
        if step == 1:
            scene.leaves("a")
        assert "ConnectionRegistry._waiting" not in scene.kept() or step == 2
        scene.connect("b")
        if step == 2:
            scene.leaves("a")
        nothing_open(scene)
        scene.on_line("b2")

    def test_both_at_once(self) -> None:
        """A terminal that calls itself and goes is forgotten as caller and as callee."""
        scene = Scene()
        scene.on_line("a", "Accept:Create Ia", "Expires:9")
        scene.says("a", query("Ia", "Ia"), a=STATUS)
        scene.leaves("a")
        assert scene.kept() == {}
        assert scene.address("Ia") is not None
        scene.passes(9)
        assert scene.address("Ia") is None

    def test_caller_with_input_ended(self) -> None:
        """A caller that only stops sending, as nc does, is answered, and then closed on."""
        scene = stage()
        scene.clients["a"].feed(query("Ia", "Ib").encode())
        scene.clients["a"].end_input()
        scene.reads(b=STATUS)
        play(scene, GRANT)
        assert scene.clients.pop("a").closed

    def test_callee_is_being_closed_on(self) -> None:
        """A callee that has answered, and whose connection is closing: 5h, nothing sent."""
        scene = stage()
        play(scene, *reply_waits())
        scene.clients["d"].transport.stop_reading_peer()
        scene.says("d", "QUERY\nPERMITS\n\n")
        scene.clients["d"].end_input()
        assert not scene.clients["d"].closed
        scene.says("b", CANT, a=BUSY + NOT_CONNECTED)
        assert len(scene.context.sessions) == 0

    def test_callee_answers_and_goes(self) -> None:
        """A callee that answers and ends its input at once has answered, and is told."""
        scene = stage()
        play(scene, CALL)
        scene.clients["b"].feed(CAN.encode())
        scene.clients["b"].end_input()
        scene.reads(a=GRANTED, b=to_callee("Ia"))

    def test_many_calls_leave_no_timers(self) -> None:
        """Timers don't grow with calls (I15)."""
        scene = stage()
        scene.calls("a", "b")
        timers = len(scene.clock.getDelayedCalls())
        for _ in range(50):
            scene.forget()
            play(scene, calls("a", "b"), CALL, says("b", CANT, a=BUSY))
        assert len(scene.clock.getDelayedCalls()) == timers
        assert len(scene.context.sessions) == 1


class RepliesTests:
    """Which reply belongs to which request (I11)."""

    def test_in_order(self) -> None:
        """Bare replies leave in the order of their requests, whichever is ready first (I11)."""
        scene = stage()
        scene.on_line("d", "Accept:Create Ia", port=4)
        asked = query("Ia", "Ib") + query("Ia", "Ix") + "QUERY\nPERMITS\n\n" + query("Ia", "Id")
        scene.says("a", asked, b=STATUS, d=STATUS)
        scene.says("d", CAN)
        told = BUSY + DENIED + "NOTIFY\nAccept:Create\n\n" + ACCEPTED + to_caller("Id", port=4)
        scene.says("b", CANT, a=told, d=to_callee("Ia"))

    def test_as_they_are_ready(self) -> None:
        """Replies with a transaction leave when they are ready (I11)."""
        scene = stage()
        scene.on_line("d", "Accept:Create Ia", port=4)
        asked = query("Ia", "Ib", "Transaction:1") + query("Ia", "Id", "Transaction:2")
        scene.says("a", asked, b=STATUS, d=STATUS)
        told = "NOTIFY\nRequest Accepted.\nTransaction:2\nCode:100\n\n"
        told += to_caller("Id", port=4, transaction="2")
        scene.says("d", CAN, a=told, d=to_callee("Ia"))
        scene.says("b", CANT, a="NOTIFY\nCallee is Busy.\nTransaction:1\nCode:486\n\n")

    def test_as_many_as_may_be(self) -> None:
        """64 bare calls, all but the first decided while they wait for it, leave in order (I11)."""
        scene = stage()
        scene.says("b", register("Ib", "Accept:Add Ic"), b=DONE)
        scene.on_line("d", "Accept:Create Ia", port=4)
        scene.says("a", register("Ia"), a=DONE)
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

    def test_bare_answers(self) -> None:
        """A bare answer settles the oldest open question (I11)."""
        scene = stage()
        scene.says("b", register("Ib", "Accept:Add Ic"), b=DONE)
        play(scene, CALL, says("c", query("Ic", "Ib"), b=STATUS))
        scene.says("b", CANT, a=BUSY)
        scene.says("b", CAN, c=ACCEPTED + to_caller("Ib"), b=to_callee("Ic"))

    def test_answers_with_a_transaction(self) -> None:
        """An answer with a transaction settles that question, in any order (I11)."""
        scene = Scene()
        scene.connect("a", "c", "b")
        lines = ("Accept:Create Ia,Ic", "Address:127.0.0.1", "Transaction:x")
        scene.clients["b"].type(register("Ib", *lines))
        scene.clients["b"].received()
        asked = "QUERY\nSTATUS\nTransaction:{}\n\n"
        scene.says("a", query("Ia", "Ib"), b=asked.format(1))
        scene.says("c", query("Ic", "Ib"), b=asked.format(2))
        for wrong in ("3", "x", "1.", "0"):
            scene.says("b", f"NOTIFY\nSTATUS Acceptable.\nTransaction:{wrong}\n\n")
        told = ACCEPTED + to_caller("Ib")
        answer = "NOTIFY\nSTATUS Acceptable.\nTransaction:2\n\n"
        scene.says("b", answer, c=told, b=to_callee("Ic"))
        scene.says("b", "NOTIFY\nSTATUS Busy.\nTransaction:2\n\n")
        scene.says("b", "NOTIFY\nSTATUS Busy.\nTransaction:1\n\n", a=BUSY)

    def test_nothing_was_asked(self) -> None:
        """Answers to no question do nothing, before login and after (I11)."""
        scene = stage()
        scene.connect("e")
        unasked = [CAN, CANT, ACCEPTED, DENIED, DONE, "NOTIFY\n\n", "NOTIFY\nAccept:Create Ia\n\n"]
        unasked += ["NOTIFY\nSTATUS Acceptable.\nTransaction:1\n\n", SUPERSEDED]
        for text in unasked:
            for name in "abce":
                scene.says(name, text)
        scene.calls("a", "b")
        scene.says("b", CAN)

    def test_not_by_others(self) -> None:
        """Only the connection that is asked can answer, not the callee's other one (I11)."""
        scene = stage()
        scene.connect("b2")
        scene.says("b2", register("Ib"), b2=DONE)
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        for name in ("b2", "a", "c"):
            scene.says(name, CAN)
        play(scene, GRANT)

    def test_only_to_the_connection_that_asked(self) -> None:
        """Another connection of the same caller reads nothing (I11)."""
        play(stage(), connect("a2"), says("a2", register("Ia"), a2=DONE), CALL, GRANT)


class FaultsTests:
    """What was not foreseen is logged, and answered without detail (I3, I18, I24)."""

    def test_in_the_resolver(self, logged: Logged) -> None:
        """An exception in a look-up refuses, shows nothing, and closes no connection (I3, I24)."""
        scene, resolver = stage_and_resolver()
        resolver.errors["lookup"] = RuntimeError("inner detail")
        scene.says("a", query("Ia", "Ib"), a=UNAVAILABLE)
        [logged_once] = logged.failures()
        assert "inner detail" in logged_once
        resolver.errors.clear()
        scene.calls("a", "b")

    def test_in_the_resolver_when_registering(self, logged: Logged) -> None:
        """So it is when an address is passed on."""
        scene, resolver = with_resolver()
        scene.connect("a")
        resolver.errors["register"] = RuntimeError("inner detail")
        scene.says("a", register("Ia", "Address:127.0.0.1"), a=UNAVAILABLE)
        assert len(logged.failures()) == 1
        assert scene.context.connections.active("Ia") is None

    @pytest.mark.parametrize("error", [ServiceUnavailable(), RuntimeError("inner detail")])
    def test_in_the_resolver_when_reach_returns(self, error: Exception, logged: Logged) -> None:
        """And when an older connection becomes the active one again: only the log shows it."""
        scene, resolver = with_resolver()
        scene.connect("b1", "b2")
        scene.says("b1", register("Ib", "Address:127.0.0.1", "Port:1"), b1=DONE)
        second = register("Ib", "Address:127.0.0.1", "Port:2")
        scene.says("b2", second, b2=DONE, b1=SUPERSEDED)
        resolver.errors["register"] = error
        scene.leaves("b2")
        assert len(logged.failures()) == isinstance(error, RuntimeError)
        assert any("did not take an address" in text for text in logged.texts())

    def test_in_the_store(self, logged: Logged) -> None:
        """And in the store; the next change goes on (I3)."""
        scene, store = with_store(PermitChange("Ib", ("Ia",)))
        scene.connect("b")
        scene.says("b", register("Ib", "Accept:Add Ix"))
        scene.fires(store.pending[0], RuntimeError("inner detail"), b=UNAVAILABLE)
        assert len(logged.failures()) == 1
        scene.says("b", register("Ib", "Accept:Add Iy"))
        scene.fires(store.pending[1], b=DONE)
        assert scene.context.permits.table.accepted("Ib") == ("Ia", "Iy")

    def test_in_the_randomness(self, logged: Logged) -> None:
        """Without randomness there is no call, and nothing was told (I3, A10)."""
        scene = stage()

        def broken(count: int) -> bytes:
            raise OSError("no randomness")

        object.__setattr__(scene.context, "randomness", broken)
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", CAN, a=UNAVAILABLE)
        assert len(logged.failures()) == 1
        assert len(scene.context.sessions) == 0

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
        scene = stage()
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
