"""Connect-back at the mediator: the password is passed on, and a refusal shows nothing."""

from __future__ import annotations

from typing import Any, Final

import pytest
from twisted.internet.defer import Deferred

from broker.interfaces import StoreFailed
from broker.messages.errors import ServiceUnavailable
from broker.tables.disclosures import CONNECT_BACK
from broker.tables.rate_limits import PASSWORD_GUESSES, WINDOW
from tests.mediator.conftest import Logged
from tests.mediator.scene import (
    CAN,
    DENIED,
    DONE,
    REQUESTED,
    STATUS,
    SUPERSEDED,
    TOO_MANY,
    Scene,
    SlowStore,
    Waker,
    bad,
    begin,
    query,
    register,
    terminate,
    with_resolver,
)
from tests.mediator.steps import Step, connect, leaves, passes, play, says
from tests.support.clock import settle
from tests.support.log import the_log

#: Seconds in which a request is decided.
PATIENCE = 5.0
SECRET = "open sesame"


def wish(
    caller: str = "Ia",
    callee: str = "Ib",
    *lines: str,
    password: str = SECRET,
    host: str = "127.0.0.1",
    port: int = 4000,
) -> str:
    """A caller's REQUEST to be connected back (fig. 7c)."""
    return "\n".join(
        [
            "REQUEST",
            f"Identifier:{caller}",
            f"Callee:{callee}",
            f"Password:{password}",
            f"Address:{host}",
            f"Port:{port}",
            *lines,
            "",
            "",
        ]
    )


def asked(
    caller: str = "Ia",
    *,
    password: str = SECRET,
    host: str = "127.0.0.1",
    port: int = 4000,
    n: str = "",
    transaction: str = "",
) -> str:
    """What the callee is asked (fig. 8c)."""
    return (
        f"REQUEST\nCaller ID:{caller}\nPassword:{password}\nAddress:{host}\nPort:{port}\n"
        f"Session:{{session{n}}}\nEncrypt Key:{{key{n}}}\nExpires:3600\n"
        f"Reply Password:{{reply{n}}}\n"
        + (f"Transaction:{transaction}\n" if transaction else "")
        + "\n"
    )


def granted(callee: str = "Ib", n: str = "", transaction: str = "") -> str:
    """What the caller is answered."""
    return (
        f"NOTIFY\nRequest Accepted.\nSession:{{session{n}}}\nEncrypt Key:{{key{n}}}\n"
        f"Callee:{callee}\nExpires:3600\nReply Password:{{reply{n}}}\n"
        + (f"Transaction:{transaction}\nCode:200\n" if transaction else "")
        + "\n"
    )


YES = "NOTIFY\nRequest Accepted.\n\n"
NO = "NOTIFY\nPermission Denied.\n\n"


def a_scene(**options: Any) -> Scene:
    """Ib waits for calls by its password; Ia is connected."""
    scene = Scene(**options)
    scene.on_line("b", "Policy:Password")
    scene.connect("a")
    return scene


def denied_after(scene: Scene, text: str, answer: str = "") -> float:
    """Seconds until Ia is denied what it asks; a callee that is asked answers at once."""
    began = scene.clock.seconds()
    scene.clients["a"].type(text)
    if answer:
        assert "Password:" in scene.heard("b")
        scene.clients["b"].type(answer)
    while not (heard := scene.heard("a")):
        assert scene.clock.seconds() - began < 60
        scene.broker.advance(0.125)
    assert heard == DENIED
    if "b" in scene.clients:
        scene.heard("b")
    return round(scene.clock.seconds() - began, 3)


class GrantedTests:
    """The callee says yes (D3, D5–D7)."""

    def test_whole_way(self) -> None:
        """Ib's list is empty; its password alone decides, and Ib alone checks it (D3)."""
        scene = a_scene()
        scene.says("a", wish(), b=asked())
        scene.says("b", YES, a=granted())
        assert scene.mediator.counts["connect-backs granted"] == 1
        scene.finish()

    def test_with_transactions(self) -> None:
        """Both sides' questions and answers are told apart where they can be (I11)."""
        scene = Scene()
        scene.connect("b", "a")
        scene.clients["b"].type(
            register("Ib", "Address:127.0.0.1", "Policy:Password", "Transaction:1")
        )
        scene.heard("b")
        scene.says("a", wish("Ia", "Ib", "Transaction:7"), b=asked(transaction="1"))
        answer = "NOTIFY\nRequest Accepted.\nTransaction:1\nCode:200\n\n"
        scene.says("b", answer, a=granted(transaction="7"))

    def test_credentials_are_fresh(self) -> None:
        """Session, key and reply password differ from call to call (I7)."""
        scene = a_scene()
        for n in "12":
            scene.says("a", wish(), b=asked(n=n))
            scene.says("b", YES, a=granted(n=n))
        assert len(set(scene.drawn.values())) == len(scene.drawn) == 6

    def test_a_callee_without_a_connection_is_woken(self) -> None:
        """It is reached as in a call: once it has come it is asked (D4, D5)."""
        trigger = Waker()
        scene = a_scene(trigger=trigger)
        scene.leaves("b")
        scene.says("a", wish())
        assert trigger.woken == [("Ib", "127.0.0.1", 1203)]
        scene.passes(2)
        scene.connect("b2")
        scene.says("b2", register("Ib", "Address:127.0.0.1"), b2=asked() + DONE)
        scene.says("b2", YES, a=granted())

    def test_a_dial_wakes_it(self) -> None:
        """A dial says only that a connection is requested: no password, no address."""
        scene = a_scene()
        scene.leaves("b")
        scene.says("a", wish())
        (dial,) = scene.dials
        assert dial.accept().text() == REQUESTED

    def test_by_name(self) -> None:
        """A callee may be called by its name, and is told by its identifier (C1)."""
        scene = Scene()
        scene.on_line("b", "Policy:Password", "Name:the office")
        scene.connect("a")
        scene.says("a", wish("Ia", "the office"), b=asked())
        scene.says("b", YES, a=granted("Ib"))

    def test_the_disclosure_is_recorded(self) -> None:
        """The caller's address is disclosed, and the record says to which terminal (I1)."""
        store = SlowStore()
        store.at_once = True
        scene = a_scene(store=store)
        scene.says("a", wish(port=4001), b=asked(port=4001))
        scene.says("b", YES, a=granted())
        scene.passes(1)
        (told,) = store.told
        assert (told.owner, told.recipient, told.host, told.port) == ("Ia", "Ib", "127.0.0.1", 4001)
        assert (told.basis, told.session) == (CONNECT_BACK, scene.drawn["session"])

    def recording(self) -> tuple[Scene, SlowStore]:
        """Ia has asked, and the disclosure of its address is being committed first."""
        store = SlowStore()
        store.at_once = store.slow_ledger = True
        scene = a_scene(store=store, ledger_first=True)
        store.at_once = False
        scene.says("a", wish())
        assert store.told == []
        return scene, store

    def test_recorded_first(self) -> None:
        """With ``--ledger first`` nothing is sent before it is kept."""
        scene, store = self.recording()
        scene.fires(store.pending.pop(), b=asked())
        assert len(store.told) == 1

    @pytest.mark.parametrize("fails", [True, False])
    def test_not_asked_after_all(self, fails: bool) -> None:
        """A callee is not asked where that can't be kept, nor one that changes its policy (I2)."""
        scene, store = self.recording()
        commit = store.pending.pop()
        if fails:
            scene.fires(commit, StoreFailed("the disk is full"))
        else:
            store.at_once = True
            scene.says("b", register("Ib", "Policy:List"), b=DONE)
            scene.fires(commit)
        play(scene, *DENIED_IN_TIME)

    def waiting(self) -> Scene:
        """Ib has said yes, and Ia's reply waits for what becomes of its call to Ic."""
        scene = a_scene()
        scene.on_line("c", "Accept:Create Ia", port=1300)
        scene.says("a", query("Ia", "Ic") + wish(), b=asked(), c=STATUS)
        scene.says("b", YES)
        return scene

    def test_bare_answers_leave_in_order(self) -> None:
        """A caller that types on reads the grant in its turn, and it is still valid then."""
        scene = self.waiting()
        scene.clients["c"].type(CAN)
        heard = scene.heard("a")
        assert heard.index("Callee Address:127.0.0.1") < heard.index("Callee:Ib")

    def test_decided_when_it_can_be_told(self) -> None:
        """A grant that waits behind another reply is decided when it can leave (I2)."""
        scene = self.waiting()
        scene.says("b", register("Ib", "Reject:Create Ia"), b=DONE)
        scene.clients["c"].type(CAN)
        assert (
            "Reply Password" not in scene.heard("a").partition("Callee:Ic")[2].partition("\n\n")[2]
        )
        assert scene.heard("b").count("Terminate.") == 1
        scene.heard("c")
        scene.passes(PATIENCE, a=DENIED)


ASK: Final = says("a", wish(), b=asked())
DENIED_IN_TIME: Final[list[Step]] = [passes(PATIENCE - 0.1), passes(0.1, a=DENIED)]
#: What becomes of a callee that was asked, where its caller is refused (I6).
# fmt: off
REFUSALS: Final[dict[str, list[Step]]] = {
    "goes": [ASK, leaves("b"), *DENIED_IN_TIME],
    # It expects no connection, and need not be told.
    "says no": [ASK, says("b", NO), *DENIED_IN_TIME],
    "says yes too late": [ASK, passes(PATIENCE, a=DENIED, b=terminate()), says("b", YES)],
    "is left by its caller": [ASK, leaves("a", b=terminate()), says("b", YES)],
    # Whatever its password (C5, I2).
    "rejects the caller and says yes": [
        ASK, says("b", register("Ib", "Reject:Create Ia"), b=DONE),
        says("b", YES, b=terminate()), *DENIED_IN_TIME,
    ],
    # The word of a connection that is not the active one does not count.
    "is elsewhere and says yes": [
        ASK, connect("b2"),
        says("b2", register("Ib", "Address:127.0.0.1"), b2=DONE, b=SUPERSEDED),
        says("b", YES, b=terminate()), *DENIED_IN_TIME,
    ],
}
# fmt: on


class RefusedTests:
    """Whatever stands in the way, the caller learns one thing, at one time (I6)."""

    def test_same_bytes_at_the_same_time(self) -> None:
        """A wrong password, a callee that is offline, has a list, rejects, or does not exist."""
        scene = a_scene()
        scene.on_line("c", "Accept:Create Ia", port=1300)
        scene.on_line("d", "Policy:Password", "Reject:Create Ia", port=1400)
        times = {
            "refused by the callee": denied_after(scene, wish(), NO),
            "nonsense": denied_after(scene, wish(), "NOTIFY\nSTATUS Busy.\n\n"),
            "no answer": denied_after(scene, wish(), "\n"),
            "a callee with a list": denied_after(scene, wish("Ia", "Ic")),
            "a callee that refuses the caller": denied_after(scene, wish("Ia", "Id")),
            "nobody": denied_after(scene, wish("Ia", "Ix")),
        }
        scene.leaves("b")
        scene.connect("b")
        times["off line"] = denied_after(scene, wish())
        assert times == dict.fromkeys(times, PATIENCE)

    @pytest.mark.parametrize("error", [ServiceUnavailable(), RuntimeError("a fault")])
    def test_a_resolver_that_fails(self, error: Exception, logged: Logged) -> None:
        """The caller can't tell; an unexpected error goes to the log with its traceback."""
        scene, resolver = with_resolver()
        scene.on_line("b", "Policy:Password")
        scene.connect("a")
        resolver.errors["lookup"] = error
        assert denied_after(scene, wish()) == PATIENCE
        assert ["a fault" in failure for failure in logged.failures()] == (
            [True] if isinstance(error, RuntimeError) else []
        )

    @pytest.mark.parametrize("callee", REFUSALS)
    def test_once_asked(self, callee: str) -> None:
        """A callee that does not connect, or must not: it is told so, unless it said no itself."""
        play(a_scene(), *REFUSALS[callee])

    def test_the_password_is_in_no_log(self) -> None:
        """Neither in a line nor in what an event holds (I18)."""
        with the_log() as lines:
            scene = a_scene()
            scene.says("a", wish(), b=asked())
            scene.says("b", NO)
            scene.passes(PATIENCE, a=DENIED)
        assert not any(SECRET in line for line in lines)


class OwnFaultTests:
    """What is wrong with the caller's own words is answered at once: it shows nothing of others."""

    @pytest.mark.parametrize(
        ("text", "cause"),
        [
            (
                wish(host="203.0.113.9"),
                "a private address is accepted only over a connection from a private address",
            ),
            (wish(host="0.0.0.0"), "an unspecified, multicast, broadcast or reserved address"),
            (wish(host="224.0.0.1"), "an unspecified, multicast, broadcast or reserved address"),
            (wish(host="www.example.com"), "the Address to connect back to is an IP address"),
            (wish(host="Provider"), "the Address to connect back to is an IP address"),
            (wish(port=1201), "the address is the server's own"),
            (
                "REQUEST\nIdentifier:Ia\nCallee:Ib\nPassword:x\n\n",
                "a REQUEST to be connected back has an Address",
            ),
        ],
    )
    def test_its_address(self, text: str, cause: str) -> None:
        """An address is validated like one that is registered (I12); no callee is asked."""
        scene = a_scene(own_ports=(1201,))
        scene.says("a", text, a=bad(cause))

    def test_another_kind_of_request(self) -> None:
        """A REQUEST without a password is another request."""
        scene = a_scene()
        text = "REQUEST\nIdentifier:Ia\nCallee:Ib\n\n"
        scene.says("a", text, a=bad("no request of this kind is known here"))

    def test_as_somebody_else(self) -> None:
        """A connection asks for itself alone (I4)."""
        scene = a_scene()
        scene.says("a", wish("Ia", "Ix"))
        scene.passes(PATIENCE, a=DENIED)
        scene.says("a", wish("Ic"), a=DENIED)

    def test_without_a_login(self) -> None:
        """A callee's call password is no login (D3)."""
        scene = Scene(accounts={"Ib": SECRET, "Ia": "pass of Ia"})
        scene.connect("a")
        cause = "log in first: REGISTER with an Identifier and a Password or Token"
        scene.says("a", wish("Ib", "Ib"), a=f"NOTIFY\nLogin Required.\nCause:{cause}\n\n")


class PeaceTests:
    """Guessing is slow, and soon the callee is not asked (I17)."""

    def guess(self, scene: Scene, who: str = "a", *, heard: bool = True) -> None:
        """A wrong password, which takes its time."""
        asks = f"I{who}"
        if heard:
            scene.says(who, wish(asks), b=asked(asks))
            scene.forget()
            scene.says("b", NO)
        else:
            scene.says(who, wish(asks))
        scene.passes(PATIENCE, **{who: DENIED})

    def test_too_many_are_not_asked_about(self) -> None:
        """After five in a minute the callee is left in peace; the caller can't tell."""
        scene = a_scene()
        for _ in range(PASSWORD_GUESSES.pair):
            self.guess(scene)
        self.guess(scene, heard=False)
        scene.passes(WINDOW - PATIENCE * (PASSWORD_GUESSES.pair + 1))
        self.guess(scene)

    def test_others_are_heard(self) -> None:
        """One caller's guesses keep no other caller out (I23)."""
        scene = a_scene()
        for _ in range(PASSWORD_GUESSES.pair):
            self.guess(scene)
        self.guess(scene, "a", heard=False)
        scene.connect("c")
        self.guess(scene, "c")

    def test_right_ones_do_not_count(self) -> None:
        """Who knows the password may call as often as it likes."""
        scene = a_scene()
        for _ in range(3 * PASSWORD_GUESSES.pair):
            scene.forget()
            scene.says("a", wish(), b=asked())
            scene.says("b", YES, a=granted())
            scene.says("b", begin(scene.drawn["session"]))

    def test_one_at_a_time(self) -> None:
        """A second one for one callee is refused, and not passed on, while one is open."""
        scene = a_scene()
        scene.says("a", wish("Ia", "Ib", "Transaction:1"), b=asked())
        scene.says("a", wish("Ia", "Ib", "Transaction:2"))
        scene.says("b", YES, a=granted(transaction="1"))
        denied = "NOTIFY\nPermission Denied.\nTransaction:2\nCode:403\n\n"
        scene.passes(PATIENCE, a=denied)

    def test_too_many_sessions(self) -> None:
        """A caller with sixteen that have not begun gets none, with any callee."""
        scene = Scene()
        scene.connect("a")
        for n in range(16):
            scene.context.sessions.granted(f"S{n}", "Ia", f"I{n}", "")
        scene.says("a", wish(), a=TOO_MANY)


class SessionTests:
    """What is granted is a session like others."""

    def a_session(self, *, begun: bool) -> Scene:
        """Ia and Ib have one."""
        scene = a_scene()
        scene.says("a", wish(), b=asked())
        scene.says("b", YES, a=granted())
        if begun:
            scene.says("b", begin(scene.drawn["session"]))
        return scene

    @pytest.mark.parametrize("begun", [False, True])
    def test_refused_later(self, begun: bool) -> None:
        """The callee refuses the caller from now on: the session is over (I2, C5)."""
        scene = self.a_session(begun=begun)
        ended = terminate()
        scene.says("b", register("Ib", "Reject:Create Ia"), b=ended + DONE, a=ended)

    def test_lists_do_not_matter(self) -> None:
        """It rests on no list, and not on a later policy."""
        scene = self.a_session(begun=True)
        scene.says("b", register("Ib", "Accept:Create", "Reject:Create Ix"), b=DONE)
        scene.says("b", register("Ib", "Policy:List"), b=DONE)
        scene.says("b", register("Ib", "Accept:Create Ic"), b=DONE)

    def test_removed(self) -> None:
        """An identifier that is removed has no session left."""
        scene = self.a_session(begun=True)
        ended = terminate()
        removing = Deferred.fromCoroutine(scene.context.permit_admin.forget("Ia"))
        settle(scene.clock)
        assert removing.called
        scene.reads(a=ended, b=ended)

    def test_a_query_is_refused(self) -> None:
        """A callee that is reached by its password is not reached by its own list."""
        scene = a_scene()
        scene.says("b", register("Ib", "Accept:Create Ia"), b=DONE)
        scene.says("a", query("Ia", "Ib"), a=DENIED)
