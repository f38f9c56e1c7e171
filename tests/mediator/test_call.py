"""The call: its order, its refusals, and what vanishes or changes in the middle of it."""

from __future__ import annotations

from collections.abc import Callable

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
    query,
    register,
    to_callee,
    to_caller,
    with_resolver,
    with_store,
)
from tests.support.clock import settle


def stage(**options: object) -> Scene:
    """Ib is on line and accepts Ia; Ia and Ic are connected."""
    scene = Scene(**options)
    scene.connect("a", "c")
    scene.on_line("b", "Accept:Create Ia")
    return scene


class FiguresTests:
    """The conversation of fig. 12, and of fig. 16."""

    def test_with_status(self) -> None:
        """Each reads what the figures print, and nobody else anything (A9, A10, A13)."""
        scene = stage()
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", CAN, a=ACCEPTED + to_caller("Ib"), b=to_callee("Ia"))

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
        for name in "abc":
            transport = scene.clients[name].transport
            write = transport.write

            def note(data: bytes, name: str = name, write: Callable[[bytes], None] = write) -> None:
                lines = ("Request Accepted.", "Caller ID", "Callee Address", "STATUS")
                written.extend(f"{name} {line}" for line in lines if line.encode() in data)
                write(data)

            monkeypatch.setattr(transport, "write", note)
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
        scene = Scene()
        scene.connect("a", "c")
        scene.on_line("b", "Accept:Create Ia,Ic")
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("c", query("Ic", "Ib"), b=STATUS)
        written: list[tuple[str, int]] = []
        for name in "abc":
            transport = scene.clients[name].transport
            write = transport.write

            def note(data: bytes, name: str = name, write: Callable[[bytes], None] = write) -> None:
                written.append((name, data.count(b"Caller ID")))
                write(data)

            monkeypatch.setattr(transport, "write", note)
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


#: How a permitted caller comes to be refused: what is done after the stage is set, the cause.
def _no_address(scene: Scene) -> str:
    scene.says("b", register("Ib", "Expires:0"), b=DONE)
    scene.clients["a"].type(query("Ia", "Ib"))
    return NOT_FOUND


def _never_registered(scene: Scene) -> str:
    scene.new_says("d", register("Id", "Accept:Create Ia"), DONE)
    scene.clients["a"].type(query("Ia", "Id"))
    return NOT_FOUND


def _busy(scene: Scene) -> str:
    scene.says("a", query("Ia", "Ib"), b=STATUS)
    scene.clients["b"].type(CANT)
    return BUSY


def _silent(scene: Scene) -> str:
    scene.says("a", query("Ia", "Ib"), b=STATUS)
    scene.broker.advance(5)
    return NOT_CONNECTED


def _vanishes(scene: Scene) -> str:
    scene.says("a", query("Ia", "Ib"), b=STATUS)
    scene.clients.pop("b").vanish()
    return NOT_CONNECTED


def _nonsense(scene: Scene) -> str:
    scene.says("a", query("Ia", "Ib"), b=STATUS)
    scene.clients["b"].type("NOTIFY\nSTATUS Perhaps.\n\n")
    return NOT_CONNECTED


def _dial_refused(scene: Scene) -> str:
    scene.leaves("b")
    scene.says("a", query("Ia", "Ib"))
    scene.dials[-1].refuse()
    return NOT_CONNECTED


def _dial_in_vain(scene: Scene) -> str:
    scene.leaves("b")
    scene.says("a", query("Ia", "Ib"))
    scene.dials[-1].accept()
    scene.broker.advance(5)
    return NOT_CONNECTED


CAUSES: list[Callable[[Scene], str]] = [
    _no_address,
    _never_registered,
    _busy,
    _silent,
    _vanishes,
    _nonsense,
    _dial_refused,
    _dial_in_vain,
]


class RefusalsTests:
    """A statement for each cause, or one for all (A20)."""

    @pytest.mark.parametrize("cause", CAUSES)
    def test_distinct(self, cause: Callable[[Scene], str]) -> None:
        """A permitted caller is told the cause: 5g, 5h or 17d (A20, A8, A13, A24)."""
        scene = stage()
        expected = cause(scene)
        scene.reads(a=expected)

    @pytest.mark.parametrize("cause", CAUSES)
    def test_uniform(self, cause: Callable[[Scene], str]) -> None:
        """In the base case each is 5c (A20)."""
        scene = stage(uniform_refusals=True)
        cause(scene)
        scene.reads(a=DENIED)

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
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.passes(4.99)
        scene.says("b", CAN, a=ACCEPTED + to_caller("Ib"), b=to_callee("Ia"))
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.passes(4.99)
        scene.passes(0.01, a=NOT_CONNECTED)
        scene.says("b", CAN)

    def test_time_configured(self) -> None:
        """The time is the operator's to set."""
        scene = stage(status_timeout=0.5)
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.passes(0.5, a=NOT_CONNECTED)

    def test_time_in_all(self) -> None:
        """Look-up, reaching and status together have these five seconds."""
        scene, resolver = with_resolver()
        scene.connect("a")
        scene.on_line("b", "Accept:Create Ia")
        resolver.hold = {"lookup"}
        scene.says("a", query("Ia", "Ib"))
        scene.passes(3)
        scene.fires(resolver.held[0], b=STATUS)
        scene.passes(2, a=NOT_CONNECTED)
        assert len(resolver.held) == 1

    def test_a_resolver_that_never_answers(self) -> None:
        """Then, too, the caller has an answer in time (A15)."""
        scene, resolver = with_resolver()
        scene.connect("a")
        scene.on_line("b", "Accept:Create Ia")
        resolver.hold = {"lookup"}
        scene.says("a", query("Ia", "Ib"))
        scene.passes(5, a=NOT_CONNECTED)

    def test_resolver_away(self) -> None:
        """A resolver that is away is told as such, to a permitted caller alone (A15, I6)."""
        scene, resolver = with_resolver()
        scene.connect("a", "c")
        scene.on_line("b", "Accept:Create Ia")
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


def _unknown(scene: Scene) -> None:
    """No terminal of that name."""


def _online(scene: Scene) -> None:
    scene.on_line("b", "Accept:Create Ia")


def _offline(scene: Scene) -> None:
    scene.on_line("b", "Accept:Create Ia")
    scene.leaves("b")


def _no_list(scene: Scene) -> None:
    scene.on_line("b")


def _taken_off(scene: Scene) -> None:
    scene.on_line("b", "Accept:Create Ia,Ic")
    scene.says("b", register("Ib", "Accept:Delete Ic"), b=DONE)


def _in_a_call(scene: Scene) -> None:
    scene.on_line("b", "Accept:Create Ia")
    scene.calls("a", "b")


def _being_asked(scene: Scene) -> None:
    scene.on_line("b", "Accept:Create Ia")
    scene.says("a", query("Ia", "Ib"), b=STATUS)


def _expired(scene: Scene) -> None:
    scene.on_line("b", "Accept:Create Ia", "Expires:1")
    scene.leaves("b")
    scene.passes(2)


class UniformTests:
    """Who is not permitted learns nothing (I1, I6)."""

    @pytest.mark.parametrize(
        "callee",
        [_unknown, _online, _offline, _no_list, _taken_off, _in_a_call, _being_asked, _expired],
    )
    @pytest.mark.parametrize("uniform", [False, True])
    def test_same_bytes(self, callee: Callable[[Scene], None], uniform: bool) -> None:
        """The same bytes at once, after the same work, and the callee hears nothing (I5, I6)."""
        scene, resolver = with_resolver(uniform_refusals=uniform)
        scene.connect("a", "c")
        callee(scene)
        asked = len(resolver.asked)
        scene.says("c", query("Ic", "Ib"), c=DENIED)
        scene.says("c", "QUERY\nCallee:Ib\n\n", c=DENIED)
        told = "NOTIFY\nPermission Denied.\nTransaction:1\nCode:403\n\n"
        scene.says("c", query("Ic", "Ib", "Transaction:1"), c=told)
        assert len(resolver.asked) == asked
        assert scene.dials == []

    def test_resolver_away(self) -> None:
        """Nor does a look-up that would fail show (I6)."""
        scene, resolver = with_resolver()
        resolver.errors["lookup"] = RuntimeError("a bug")
        scene.connect("c")
        scene.says("c", query("Ic", "Ib"), c=DENIED)


class ChangedMeanwhileTests:
    """What was true when a call began must be true when it is told (I1, I2)."""

    @pytest.mark.parametrize("answer", [CAN, CANT, "NOTIFY\nSTATUS Perhaps.\n\n"])
    def test_withdrawn_while_asked(self, answer: str) -> None:
        """A permit withdrawn while the status is asked: 5c, whatever the status is (I1, I2, I6)."""
        scene = stage()
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", register("Ib", "Accept:Delete Ia"), b=DONE)
        scene.says("b", answer, a=DENIED)
        assert len(scene.context.sessions) == 0

    def test_withdrawn_and_silent(self) -> None:
        """And if there is no answer (A20)."""
        scene = stage()
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", register("Ib", "Accept:Delete Ia"), b=DONE)
        scene.passes(5, a=DENIED)

    def test_withdrawn_and_gone(self) -> None:
        """And if the callee has gone (A20)."""
        scene = stage()
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", register("Ib", "Accept:Delete Ia"), b=DONE)
        scene.leaves("b", a=DENIED)

    def test_withdrawn_in_the_same_breath(self) -> None:
        """Withdrawal and answer in one piece of input: the withdrawal came first (I2)."""
        scene = stage()
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", register("Ib", "Accept:Delete Ia") + CAN, b=DONE, a=DENIED)

    def test_withdrawn_over_another_connection(self) -> None:
        """Over whichever connection it is withdrawn (I2)."""
        scene = stage()
        scene.connect("b2")
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b2", register("Ib", "Accept:Create"), b2=DONE)
        scene.says("b", CAN, a=DENIED)

    def test_given_back(self) -> None:
        """Withdrawn and given again: it is permitted at that moment (I1)."""
        scene = stage()
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", register("Ib", "Accept:Delete Ia\nAdd Ia"), b=DONE)
        scene.says("b", CAN, a=ACCEPTED + to_caller("Ib"), b=to_callee("Ia"))

    def test_withdrawn_while_looked_up(self) -> None:
        """A permit withdrawn during the look-up: 5c, and the callee is not even asked (I2, I5)."""
        for status in (True, False):
            scene, resolver = with_resolver(ask_status=status)
            scene.connect("a")
            scene.on_line("b", "Accept:Create Ia")
            resolver.hold = {"lookup"}
            scene.says("a", query("Ia", "Ib"))
            scene.says("b", register("Ib", "Accept:Delete Ia"), b=DONE)
            scene.fires(resolver.held[0], a=DENIED)

    @pytest.mark.parametrize("found", [True, False])
    def test_withdrawn_while_not_found(self, found: bool) -> None:
        """That there is no address is told to nobody who is not permitted any more (A20, I6)."""
        scene, resolver = with_resolver()
        scene.connect("a")
        scene.on_line("b", "Accept:Create Ia")
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        resolver.hold = {"lookup"}
        scene.says("b", register("Ib", "Address:127.0.0.1", "Port:9"), b=DONE)
        if not found:
            resolver.errors["lookup"] = ServiceUnavailable()
        scene.says("b", register("Ib", "Accept:Delete Ia"), b=DONE)
        if found:
            scene.says("b", CAN)
            scene.fires(resolver.held[0], a=DENIED)
        else:
            scene.says("b", CAN, a=DENIED)

    def test_withdrawn_while_its_reply_waits(self) -> None:
        """A bare reply that waits behind an earlier one is decided when it can leave (I1, I2).

        So what is withdrawn meanwhile is refused; the callee has heard of no call.
        """
        scene = stage()
        scene.on_line("d", "Accept:Create Ia", port=4)
        scene.says("a", query("Ia", "Ib") + query("Ia", "Id"), b=STATUS, d=STATUS)
        scene.says("d", CAN)
        scene.says("d", register("Id", "Accept:Delete Ia"), d=DONE)
        scene.says("b", CAN, b=to_callee("Ia"), a=ACCEPTED + to_caller("Ib") + DENIED)

    def test_refused_while_its_reply_waits(self) -> None:
        """So is a refusal: its cause is for whom the callee accepts then (A20, I6)."""
        scene = stage()
        scene.on_line("d", "Accept:Create Ia", port=4)
        scene.says("a", query("Ia", "Ib") + query("Ia", "Id"), b=STATUS, d=STATUS)
        scene.says("d", CANT)
        scene.says("d", register("Id", "Accept:Delete Ia"), d=DONE)
        scene.says("b", CANT, a=BUSY + DENIED)

    @pytest.mark.parametrize("answer", [CAN, CANT])
    def test_late_while_its_reply_waits(self, answer: str) -> None:
        """Even where that is after the time allowed (I1, I2)."""
        for withdrawn in (True, False):
            scene, store = with_store(PermitChange("Ib", ("Ia",)))
            scene.connect("a")
            scene.on_line("b")
            asked = register("Ia", "Accept:Add Ix") + query("Ia", "Ib")
            scene.says("a", asked, b=STATUS)
            scene.says("b", answer)
            scene.passes(10)
            if withdrawn:
                scene.says("b", register("Ib", "Accept:Delete Ia"))
                scene.fires(store.pending[1], b=DONE)
                scene.fires(store.pending[0], a=DONE + DENIED)
            elif answer == CAN:
                told = DONE + ACCEPTED + to_caller("Ib")
                scene.fires(store.pending[0], a=told, b=to_callee("Ia"))
            else:
                scene.fires(store.pending[0], a=DONE + BUSY)

    def test_moved_while_its_reply_waits(self) -> None:
        """And the address told is the one at that moment (A7)."""
        scene = stage()
        scene.on_line("d", "Accept:Create Ia", port=4)
        scene.says("a", query("Ia", "Ib") + query("Ia", "Id"), b=STATUS, d=STATUS)
        scene.says("d", CAN)
        scene.says("d", register("Id", "Address:127.0.0.1", "Port:5"), d=DONE)
        told = ACCEPTED + to_caller("Id", port=5)
        scene.says("b", CANT, a=BUSY + told, d=to_callee("Ia"))

    def test_superseded_while_asked(self) -> None:
        """Reach moves to another connection while the first is asked: 5h, nobody is told (I12)."""
        scene = stage()
        scene.connect("b2")
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        moved = register("Ib", "Address:127.0.0.1", "Port:9")
        scene.says("b2", moved, b2=DONE, b=SUPERSEDED)
        scene.says("b", CAN, a=NOT_CONNECTED)
        scene.says("a", query("Ia", "Ib"), b2=STATUS)
        scene.says("b2", CAN, b2=to_callee("Ia"), a=ACCEPTED + to_caller("Ib", port=9))

    def test_moved_while_asked(self) -> None:
        """A callee that registers anew while it is asked is told at its new address (A7)."""
        scene = stage()
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", register("Ib", "Address:127.0.0.2", "Port:9"), b=DONE)
        told = ACCEPTED + to_caller("Ib", "127.0.0.2", 9)
        scene.says("b", CAN, a=told, b=to_callee("Ia"))

    def test_moved_while_looked_up_again(self) -> None:
        """And once more, while that is being looked up (A7)."""
        scene, resolver = with_resolver()
        scene.connect("a")
        scene.on_line("b", "Accept:Create Ia", port=1)
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.on_line("b", port=2)
        resolver.hold = {"lookup"}
        scene.says("b", CAN)
        scene.on_line("b", port=3)
        scene.fires(resolver.held.pop())
        told = ACCEPTED + to_caller("Ib", port=3)
        scene.fires(resolver.held.pop(), a=told, b=to_callee("Ia"))

    def test_withdrawn_address_while_asked(self) -> None:
        """An address taken back while the status is asked is not told (I10)."""
        for who in ("b", "b2"):
            scene = stage()
            scene.connect("b2")
            scene.says("a", query("Ia", "Ib"), b=STATUS)
            scene.says(who, register("Ib", "Expires:0"), **{who: DONE})
            scene.says("b", CAN, a=NOT_CONNECTED)

    def test_expired_address(self) -> None:
        """An expired address is not told: neither looked up nor dialled (I10)."""
        scene = Scene()
        scene.on_line("b", "Accept:Create Ia", "Expires:60")
        scene.leaves("b")
        scene.passes(60)
        scene.connect("a")
        scene.says("a", query("Ia", "Ib"), a=NOT_FOUND)
        assert scene.dials == []

    @pytest.mark.parametrize(("lasts", "told"), [(3.0, False), (3.1, True)])
    def test_expires_while_asked(self, lasts: float, told: bool) -> None:
        """Nor one that expires while the status is asked (I10)."""
        scene, resolver = with_resolver()
        scene.connect("a")
        scene.on_line("b", "Accept:Create Ia")
        resolver.lasts = lasts
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.passes(3)
        if told:
            scene.says("b", CAN, a=ACCEPTED + to_caller("Ib"), b=to_callee("Ia"))
        else:
            scene.says("b", CAN, a=NOT_FOUND)

    def test_reach_returns_while_looked_up(self) -> None:
        """The address told is that of the connection that was asked (I12).

        Reach returns to an older connection while the newer one's address is on its way.
        """
        scene, resolver = with_resolver()
        scene.connect("a", "b1", "b2")
        scene.says("b1", register("Ib", "Accept:Create Ia", "Address:127.0.0.1", "Port:1"), b1=DONE)
        scene.says("b2", register("Ib", "Address:127.0.0.1", "Port:2"), b2=DONE, b1=SUPERSEDED)
        resolver.hold = {"lookup"}
        scene.says("a", query("Ia", "Ib"))
        scene.leaves("b2")
        scene.fires(resolver.held.pop(), b1=STATUS)
        scene.says("b1", CAN)
        told = ACCEPTED + to_caller("Ib", port=1)
        scene.fires(resolver.held.pop(), a=told, b1=to_callee("Ia"))


class VanishingTests:
    """Somebody goes in the middle of it: nothing stays behind (I15).

    That nothing does is looked at after each test, and here at once.
    """

    @staticmethod
    def nothing_open(scene: Scene) -> None:
        """No call is being decided and no session stands."""
        kept = set(scene.kept())
        assert kept <= {
            "ConnectionRegistry._connections",
            "ConnectionRegistry._active",
            "WakeUpDialer._dialled",
            "WakeUpDialer._notified",
        }
        for client in scene.clients.values():
            assert client.protocol.receiver._questions is None

    def test_caller_while_asked(self) -> None:
        """The caller goes while the callee is asked; the late answer settles nothing."""
        scene = stage()
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.leaves("a")
        self.nothing_open(scene)
        scene.says("b", CAN)
        scene.says("b", CAN)

    def test_caller_while_looked_up(self) -> None:
        """The caller goes during the look-up: the callee is not even asked."""
        scene, resolver = with_resolver()
        scene.connect("a")
        scene.on_line("b", "Accept:Create Ia")
        resolver.hold = {"lookup"}
        scene.says("a", query("Ia", "Ib"))
        scene.leaves("a")
        self.nothing_open(scene)
        assert resolver.held[0].called
        scene.reads()

    def test_caller_while_its_reply_waits(self) -> None:
        """The caller goes while one of its calls waits for another."""
        scene = stage()
        scene.on_line("d", "Accept:Create Ia", port=4)
        scene.says("a", query("Ia", "Ib") + query("Ia", "Id"), b=STATUS, d=STATUS)
        scene.says("d", CAN)
        scene.leaves("a")
        self.nothing_open(scene)
        scene.says("b", CAN)

    def test_caller_while_dialled(self) -> None:
        """The caller goes while the callee is dialled, or after: nobody waits for the callee."""
        for step in range(3):
            scene = stage()
            scene.leaves("b")
            scene.says("a", query("Ia", "Ib"))
            if step == 0:
                scene.leaves("a")
            scene.dials[0].accept()
            if step == 1:
                scene.leaves("a")
            assert "ConnectionRegistry._waiting" not in scene.kept() or step == 2
            scene.connect("b")
            if step == 2:
                scene.leaves("a")
            self.nothing_open(scene)
            scene.on_line("b2")

    def test_both_at_once(self) -> None:
        """Who calls itself and goes is caller and callee at once: it is forgotten as either."""
        scene = Scene()
        scene.on_line("a", "Accept:Create Ia", "Expires:9")
        scene.says("a", query("Ia", "Ia"), a=STATUS)
        scene.leaves("a")
        assert scene.kept() == {}
        assert scene.address("Ia") is not None
        scene.passes(9)
        assert scene.address("Ia") is None

    def test_caller_once_told(self) -> None:
        """The caller goes with its credentials: the session ends by itself, unspent, in 30 s."""
        scene = stage()
        scene.calls("a", "b")
        scene.leaves("a")
        scene.passes(29.9)
        assert len(scene.context.sessions) == 1
        scene.passes(0.1)
        self.nothing_open(scene)

    def test_caller_with_input_ended(self) -> None:
        """Who has only stopped sending, as nc does, is answered before the connection closes."""
        scene = stage()
        scene.clients["a"].feed(query("Ia", "Ib").encode())
        scene.clients["a"].end_input()
        scene.reads(b=STATUS)
        scene.says("b", CAN, a=ACCEPTED + to_caller("Ib"), b=to_callee("Ia"))
        assert scene.clients.pop("a").closed

    def test_callee_while_looked_up(self) -> None:
        """The callee goes during the look-up: it is dialled at its address."""
        scene, resolver = with_resolver()
        scene.connect("a")
        scene.on_line("b", "Accept:Create Ia")
        resolver.hold = {"lookup"}
        scene.says("a", query("Ia", "Ib"))
        scene.leaves("b")
        scene.fires(resolver.held[0])
        scene.dials[0].refuse()
        scene.reads(a=NOT_CONNECTED)
        self.nothing_open(scene)

    def test_callee_while_asked(self) -> None:
        """The callee goes while it is asked: 5h at once (A24)."""
        scene = stage()
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.leaves("b", a=NOT_CONNECTED)
        self.nothing_open(scene)

    def test_callee_while_looked_up_again(self) -> None:
        """The callee answers, and goes while its new address is looked up: 5h, nothing told."""
        scene, resolver = with_resolver()
        scene.connect("a")
        scene.on_line("b", "Accept:Create Ia", port=1)
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.on_line("b", port=2)
        resolver.hold = {"lookup"}
        scene.says("b", CAN)
        scene.leaves("b")
        scene.fires(resolver.held[0], a=NOT_CONNECTED)
        self.nothing_open(scene)

    def test_callee_while_its_reply_waits(self) -> None:
        """The callee answers, and goes while the caller's reply waits: 5h, nothing told."""
        scene = stage()
        scene.on_line("d", "Accept:Create Ia", port=4)
        scene.says("a", query("Ia", "Ib") + query("Ia", "Id"), b=STATUS, d=STATUS)
        scene.says("d", CAN)
        scene.leaves("d")
        scene.says("b", CANT, a=BUSY + NOT_CONNECTED)
        self.nothing_open(scene)

    def test_callee_is_being_closed_on(self) -> None:
        """A callee that has answered, and whose connection is on its way out: 5h, nothing told."""
        scene = stage()
        scene.on_line("d", "Accept:Create Ia", port=4)
        scene.says("a", query("Ia", "Ib") + query("Ia", "Id"), b=STATUS, d=STATUS)
        scene.says("d", CAN)
        scene.clients["d"].transport.stop_reading_peer()
        scene.says("d", "QUERY\nPERMITS\n\n")
        scene.clients["d"].end_input()
        assert not scene.clients["d"].closed
        scene.says("b", CANT, a=BUSY + NOT_CONNECTED)
        assert len(scene.context.sessions) == 0

    def test_callee_answers_and_goes(self) -> None:
        """The callee answers and ends its input in one breath: it has answered, and is told."""
        scene = stage()
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.clients["b"].feed(CAN.encode())
        scene.clients["b"].end_input()
        scene.reads(a=ACCEPTED + to_caller("Ib"), b=to_callee("Ia"))

    def test_callee_comes_back(self) -> None:
        """The callee goes and comes back while it is asked: this call is lost, the next is not."""
        scene = stage()
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.leaves("b", a=NOT_CONNECTED)
        scene.on_line("b")
        scene.calls("a", "b")

    def test_many_calls_leave_no_timers(self) -> None:
        """Timers don't grow with calls (I15)."""
        scene = stage()
        scene.calls("a", "b")
        timers = len(scene.clock.getDelayedCalls())
        for _ in range(50):
            scene.forget()
            scene.calls("a", "b")
            scene.says("a", query("Ia", "Ib"), b=STATUS)
            scene.says("b", CANT, a=BUSY)
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
        scene = Scene()
        scene.connect("a", "c")
        scene.on_line("b", "Accept:Create Ia,Ic")
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("c", query("Ic", "Ib"), b=STATUS)
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
        """Answers that nobody asked for do nothing, before login and after (I11)."""
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
        scene.says("b", CAN, a=ACCEPTED + to_caller("Ib"), b=to_callee("Ia"))

    def test_only_to_the_connection_that_asked(self) -> None:
        """Another connection of the same caller reads nothing (I11)."""
        scene = stage()
        scene.connect("a2")
        scene.says("a2", register("Ia"), a2=DONE)
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", CAN, a=ACCEPTED + to_caller("Ib"), b=to_callee("Ia"))


class FaultsTests:
    """What was not foreseen is logged, and answered without detail (I3, I18, I24)."""

    def test_in_the_resolver(self, logged: Logged) -> None:
        """An exception in a look-up denies, says nothing of itself, and ends nobody (I3, I24)."""
        scene, resolver = with_resolver()
        scene.connect("a")
        scene.on_line("b", "Accept:Create Ia")
        resolver.errors["lookup"] = RuntimeError("inner detail")
        scene.says("a", query("Ia", "Ib"), a=UNAVAILABLE)
        [logged_once] = logged.failures()
        assert "inner detail" in logged_once
        resolver.errors.clear()
        scene.calls("a", "b")

    def test_in_the_resolver_when_registering(self, logged: Logged) -> None:
        """The same when an address is passed on."""
        scene, resolver = with_resolver()
        scene.connect("a")
        resolver.errors["register"] = RuntimeError("inner detail")
        scene.says("a", register("Ia", "Address:127.0.0.1"), a=UNAVAILABLE)
        assert len(logged.failures()) == 1
        assert scene.context.connections.active("Ia") is None

    @pytest.mark.parametrize("error", [ServiceUnavailable(), RuntimeError("inner detail")])
    def test_in_the_resolver_when_reach_returns(self, error: Exception, logged: Logged) -> None:
        """And when reach returns to an older connection: that is logged, and nobody's end."""
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
