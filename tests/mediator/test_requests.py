"""Requests that are none here, bodies, and peers that misbehave (broker.mediator.server)."""

from __future__ import annotations

from typing import Final

import pytest
from zope.interface.verify import verifyObject

from broker.interfaces import IResolver, IStore, ITrigger
from tests.mediator.scene import (
    CAN,
    DENIED,
    DONE,
    STATUS,
    Scene,
    Waker,
    bad,
    permits,
    query,
    register,
    with_resolver,
    with_store,
)
from tests.support.server import a_mediator

UNKNOWN = bad("no request of this kind is known here")
NO_VERB = bad("the verb must be REGISTER, QUERY, NOTIFY or REQUEST")

#: Requests that a mediator does not serve, with their answers.
# fmt: off
NOT_HERE: Final[dict[str, tuple[str, str]]] = {
    "LOOKUP": ("QUERY\nLOOKUP\nCallee:Ib\n\n", UNKNOWN),
    "LOOKUP with a transaction": (
        "QUERY\nLOOKUP\nCallee:Ib\nTransaction:1\n\n",
        f"{UNKNOWN[:-1]}Transaction:1\nCode:400\n\n",
    ),
    "STATUS": ("QUERY\nSTATUS\n\n", UNKNOWN),
    "another QUERY": ("QUERY\nWEATHER\n\n", UNKNOWN),
    "REQUEST": ("REQUEST\nIdentifier:Ia\nCallee:Ib\n\n", UNKNOWN),
    "fig. 5f": ("REQUEST\nIdentifier:Ia\nPassword:x\n\n", UNKNOWN),
    "a statement in a REGISTER": ("REGISTER\nIdentifier:Ia\nPERMITS\n\n", UNKNOWN),
    "a QUERY without a callee": ("QUERY\nIdentifier:Ia\n\n", bad("a QUERY names a Callee")),
    "a body": (query("Ia", "Ib", "Length:3") + "abc", bad("this message takes no body")),
    "a verb that is none": ("INVITE\nIdentifier:Ia\n\n", NO_VERB),
    "a callee that is none": (query("Ia", "@all"), bad("Callee: an identifier begins with @")),
    "two callees": ("QUERY\nCallee:Ib\nCallee:Ic\n\n", bad("Callee stands twice")),
}
# fmt: on


class NotHereTests:
    """What a mediator does not do."""

    @pytest.mark.parametrize("case", NOT_HERE)
    def test_when_a_request_is_unknown_here_then_it_is_refused(self, case: str) -> None:
        """It changes nothing, and the connection goes on. The resolver is not asked, the callee not
        told (I5, I24).
        """
        text, answer = NOT_HERE[case]
        scene, resolver = with_resolver()
        scene.new_says("a", register("Ia", "Accept:Add Ix"), DONE)
        scene.on_line("b", "Accept:Create Ia")
        asked = list(resolver.asked)
        scene.says("a", text, a=answer)
        assert resolver.asked == asked
        scene.says("a", "QUERY\nPERMITS\n\n", a=permits("Create Ix"))
        scene.calls("a", "b")

    def test_when_a_body_comes_before_login_then_the_connection_is_closed(self) -> None:
        """It is refused (I14)."""
        scene = Scene()
        scene.connect("a")
        text = "REGISTER\nIdentifier:Ia\nLength:3\n\nabc"
        answer = "NOTIFY\nToo Large.\nCause:a body here has at most 0 bytes\n\n"
        scene.says("a", text, a=answer)
        assert scene.clients.pop("a").closed

    def test_when_a_connection_does_not_log_in_then_it_is_closed(self) -> None:
        """One that has logged in stays (I14)."""
        scene = Scene(hub={"login_timeout": 10.0})
        scene.connect("a", "c")
        scene.says("a", register("Ia"), a=DONE)
        scene.says("c", STATUS, c=UNKNOWN)
        scene.passes(9.9)
        assert not scene.clients["c"].closed
        scene.passes(0.1)
        assert scene.clients.pop("c").closed
        scene.passes(1000)
        assert not scene.clients["a"].closed

    def test_when_a_peer_misbehaves_then_other_calls_go_on(self) -> None:
        """A thousand messages are malformed; framing is lost, and the connection closed (I24)."""
        scene = Scene()
        scene.connect("a", "c")
        scene.on_line("b", "Accept:Create Ia")
        scene.clients["c"].type("NONSENSE\n\n" * 1000)
        assert len(scene.clients["c"].received()) == 1000
        scene.calls("a", "b", "1")
        scene.clients["c"].send(b"QUERY\nCallee:\xff\xfe\n\n")
        scene.reads(c=bad("not UTF-8"))
        assert scene.clients.pop("c").closed
        scene.calls("a", "b", "2")

    def test_when_a_caller_has_64_calls_open_then_the_next_waits(self) -> None:
        """Its turn comes (I15)."""
        scene = Scene()
        scene.on_line("b", "Accept:Create Ia")
        scene.new_says("a", register("Ia"), DONE)
        scene.clients["a"].type(query("Ia", "Ib") * 70)
        assert scene.clients["b"].text() == STATUS * 64
        scene.clients["b"].type("NOTIFY\nSTATUS Busy.\n\n" * 64)
        assert scene.clients["b"].text() == STATUS * 6
        assert len(scene.clients["a"].received()) == 64

    def test_when_requests_are_served_then_their_outcomes_are_counted(self) -> None:
        """By their statement, for the operator."""
        scene = Scene()
        scene.connect("a")
        scene.on_line("b", "Accept:Create Ia")
        scene.calls("a", "b")
        scene.says("a", query("Ia", "Ic"), a=DENIED)
        scene.says("a", "NONSENSE\n\n", a=NO_VERB)
        counts = scene.mediator.counts
        assert counts["Permission Denied."] == 1
        assert counts["malformed"] == 1
        assert not any("Ia" in name or "Ib" in name for name in counts)


class SeamsTests:
    """What the mediator holds on to is what ``interfaces`` says (A15)."""

    def test_when_parts_are_replaced_then_they_provide_the_interfaces(self) -> None:
        for scene in (Scene(), with_resolver()[0], with_store()[0]):
            assert verifyObject(IResolver, scene.broker.resolver)
            assert verifyObject(IStore, scene.broker.store)
            assert verifyObject(ITrigger, scene.broker.trigger)

    def test_when_the_wakeup_is_another_then_a_call_goes_on_the_same_way(self) -> None:
        """It does not learn how the callee was woken."""
        waker = Waker()
        scene = Scene(trigger=waker)
        scene.on_line("b", "Accept:Create Ia")
        scene.leaves("b")
        scene.new_says("a", query("Ia", "Ib"), "")
        assert waker.woken == [("Ib", "127.0.0.1", 1203)]
        scene.connect("b")
        scene.says("b", register("Ib", "Address:127.0.0.1"), b=STATUS + DONE)
        scene.clients["b"].type(CAN)
        assert len(scene.clients["a"].received()) == 2
        assert scene.dials == []


class TracedTests:
    """Who looks on changes nothing."""

    @pytest.mark.parametrize("mark", ["", "Transaction:t1\n"])
    def test_when_messages_are_traced_then_the_bytes_are_the_same(self, mark: str) -> None:
        asked = (
            f"REGISTER\nIdentifier:Ia\nAccept:Create Ib\n{mark}\n"
            f"QUERY\nIdentifier:Ia\nCallee:Ix\n{mark}\nQUERY\nWEATHER\n{mark}\n"
        )
        said = []
        for trace in (None, lambda *_: None):
            client = a_mediator(hub={"trace": trace}).connect()
            client.type(asked)
            said.append(client.bytes())
        assert said[0] == said[1]
        assert said[0].count(b"NOTIFY") == 3
