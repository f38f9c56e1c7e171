"""Connect-back at the mediator: the password is passed on, and a refusal shows nothing.

A callee has read the password in every scene here, so that it may be in no log after it (I18).
"""

from __future__ import annotations

from typing import Any, Final

import pytest

from broker.interfaces import StoreFailed
from broker.messages.errors import ServiceUnavailable
from broker.tables.disclosures import CONNECT_BACK
from broker.tables.rate_limits import PASSWORD_GUESSES, WINDOW
from tests.mediator.conftest import Logged
from tests.mediator.scene import (
    ACCEPTED,
    CAN,
    DENIED,
    DONE,
    REQUESTED,
    STATUS,
    SUPERSEDED,
    TOO_MANY,
    Scene,
    SlowStore,
    bad,
    begin,
    query,
    terminate,
    to_callee,
    to_caller,
    with_resolver,
)
from tests.mediator.steps import (
    FORGET,
    Step,
    connect,
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
from tests.support.clock import result_of

#: Seconds in which a request is decided.
PATIENCE = 5.0
SECRET = "open sesame"


def wish(
    caller: str = "Ia",
    callee: str = "Ib",
    *lines: str,
    host: str = "127.0.0.1",
    port: int = 4000,
) -> str:
    """A caller's REQUEST to be connected back (fig. 7c)."""
    fields = [f"Password:{SECRET}", f"Address:{host}", f"Port:{port}", *lines, "", ""]
    return "\n".join(["REQUEST", f"Identifier:{caller}", f"Callee:{callee}", *fields])


def asked(
    caller: str = "Ia",
    *,
    port: int = 4000,
    n: str = "",
    transaction: str = "",
) -> str:
    """What the callee is asked (fig. 8c)."""
    return (
        f"REQUEST\nCaller ID:{caller}\nPassword:{SECRET}\nAddress:127.0.0.1\nPort:{port}\n"
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


ASK: Final = says("a", wish(), b=asked())
GRANT: Final = says("b", YES, a=granted())
UNHEARD: Final = says("a", wish())
IN_TIME: Final = passes(PATIENCE, a=DENIED)
DENIED_IN_TIME: Final[list[Step]] = [passes(PATIENCE - 0.1), passes(0.1, a=DENIED)]
#: A wrong password, which takes its time.
GUESS: Final[list[Step]] = [FORGET, ASK, says("b", NO), IN_TIME]
GUESSES: Final[list[Step]] = PASSWORD_GUESSES.pair * GUESS
BEGIN: Final = says("b", begin("{session}"))
#: Ib has said yes, and Ia's reply waits for what becomes of its call to Ic.
WAITING: Final[list[Step]] = [
    on_line("c", "Accept:Create Ia", port=1300),
    says("a", query("Ia", "Ic") + wish(), b=asked(), c=STATUS),
    says("b", YES),
]
GRANTED_C: Final = ACCEPTED + to_caller("Ic", port=1300, n="1")
ENDED: Final = {"a": terminate(), "b": terminate() + DONE}


def marked(text: str, transaction: str, code: int) -> str:
    """An answer with a transaction."""
    return f"{text[:-1]}Transaction:{transaction}\nCode:{code}\n\n"


# fmt: off
CASES: Final[dict[str, list[Step]]] = {
    # Ib's list is empty; its password alone decides, and Ib alone checks it (D3, D5–D7).
    "the whole way": [
        ASK, GRANT, holds(lambda scene: scene.mediator.counts["connect-backs granted"] == 1),
    ],
    # Both sides' questions and answers are told apart where they can be (I11).
    "with transactions": [
        says(
            "b", "QUERY\nPERMITS\nTransaction:x\n\n",
            b=marked("NOTIFY\nAccept:Create\nPolicy:Password\n\n", "x", 200),
        ),
        says("a", wish("Ia", "Ib", "Transaction:7"), b=asked(transaction="1")),
        says("b", marked(YES, "1", 200), a=granted(transaction="7")),
    ],
    # Session, key and reply password differ from call to call (I7).
    "fresh": [
        *(
            step for n in "12"
            for step in (says("a", wish(), b=asked(n=n)), says("b", YES, a=granted(n=n)))
        ),
        holds(lambda scene: len(set(scene.drawn.values())) == len(scene.drawn) == 6),
    ],
    # A callee may be called by its name, and is told by its identifier (C1).
    "by name": [
        registers("b", "Name:the office"), says("a", wish("Ia", "the office"), b=asked()), GRANT,
    ],
    # A caller that types on reads the grant in its turn, and it is still valid then.
    "in order": [
        *WAITING, says("c", CAN, c=to_callee("Ia", "1"), a=GRANTED_C + granted()),
    ],
    # A grant that waits behind another reply is decided when it can leave (I2).
    "decided when it can be told": [
        *WAITING, registers("b", "Reject:Create Ia"),
        says("c", CAN, c=to_callee("Ia", "1"), a=GRANTED_C, b=terminate()), IN_TIME,
    ],
    # A callee that is reached by its password is not reached by its own list.
    "by a list": [registers("b", "Accept:Create Ia"), says("a", query("Ia", "Ib"), a=DENIED)],
    # A connection asks for itself alone (I4).
    "as another": [
        says("a", wish("Ia", "Ix")), IN_TIME, says("a", wish("Ic"), a=DENIED),
    ],
    # After five wrong ones in a minute the callee is left in peace; the caller can't tell (I17).
    "too many guesses": [
        *GUESSES, UNHEARD, IN_TIME, passes(WINDOW - PATIENCE * (PASSWORD_GUESSES.pair + 1)), *GUESS,
    ],
    # One caller's guesses keep no other caller out (I23).
    "another caller's guesses": [
        *GUESSES, UNHEARD, IN_TIME, connect("c"), FORGET, says("c", wish("Ic"), b=asked("Ic")),
        says("b", NO), passes(PATIENCE, c=DENIED),
    ],
    # Who knows the password may call as often as it likes.
    "right ones": 3 * PASSWORD_GUESSES.pair * [FORGET, ASK, GRANT, BEGIN],
    # A second one for one callee is refused, and not passed on, while one is open.
    "one at a time": [
        says("a", wish("Ia", "Ib", "Transaction:1"), b=asked()),
        says("a", wish("Ia", "Ib", "Transaction:2")), says("b", YES, a=granted(transaction="1")),
        passes(PATIENCE, a=marked(DENIED, "2", 403)),
    ],
    # A caller with sixteen that have not begun gets none, with any callee.
    "too many sessions": [
        *(
            lambda scene, n=n: scene.context.sessions.granted(f"S{n}", "Ia", f"I{n}", "")
            for n in range(16)
        ),
        says("a", wish(), a=TOO_MANY),
    ],
    # The callee refuses the caller from now on: the session is over (I2, C5).
    "refused later, unspent": [ASK, GRANT, registers("b", "Reject:Create Ia", **ENDED)],
    "refused later, begun": [ASK, GRANT, BEGIN, registers("b", "Reject:Create Ia", **ENDED)],
    # It rests on no list, and not on a later policy.
    "lists do not matter": [
        ASK, GRANT, BEGIN, registers("b", "Accept:Create", "Reject:Create Ix"),
        registers("b", "Policy:List"), registers("b", "Accept:Create Ic"),
    ],
    # An identifier that is removed has no session left.
    "removed": [
        ASK, GRANT, BEGIN, lambda scene: result_of(scene.context.permit_admin.forget("Ia")),
        reads(a=terminate(), b=terminate()),
    ],
}
# fmt: on


class GrantedTests:
    """The callee says yes, or is not even asked."""

    @pytest.mark.parametrize("case", CASES)
    def test_case(self, case: str) -> None:
        """What caller and callee read, until the session is over."""
        play(a_scene(), *CASES[case])

    def test_woken(self) -> None:
        """A callee without a connection is reached as in a call: it is asked once it has come
        (D4, D5). A dial says only that a connection is requested: no password, no address.
        """
        scene = a_scene()
        play(scene, leaves("b"), UNHEARD)
        (dial,) = scene.dials
        assert dial.accept().text() == REQUESTED
        play(scene, passes(2), connect("b"))
        play(scene, registers("b", "Address:127.0.0.1", b=asked() + DONE), GRANT)

    def recording(self) -> tuple[Scene, SlowStore]:
        """Ia has asked, and the disclosure of its address is being committed first."""
        store = SlowStore()
        store.at_once = store.slow_ledger = True
        scene = a_scene(store=store, ledger_first=True)
        store.at_once = False
        scene.says("a", wish(port=4001))
        assert store.told == []
        return scene, store

    def test_recorded_first(self) -> None:
        """The caller's address is disclosed, and the record says to which terminal (I1). With
        ``--ledger first`` nothing is sent before it is kept.
        """
        scene, store = self.recording()
        scene.fires(store.pending.pop(), b=asked(port=4001))
        play(scene, GRANT)
        (told,) = store.told
        assert (told.owner, told.recipient, told.host, told.port) == ("Ia", "Ib", "127.0.0.1", 4001)
        assert (told.basis, told.session) == (CONNECT_BACK, scene.drawn["session"])

    @pytest.mark.parametrize("fails", [True, False])
    def test_not_asked_after_all(self, fails: bool) -> None:
        """A callee is not asked where that can't be kept, nor one that changes its policy (I2)."""
        scene, store = self.recording()
        commit = store.pending.pop()
        if fails:
            scene.fires(commit, StoreFailed("the disk is full"))
        else:
            store.at_once = True
            scene.registers("b", "Policy:List")
            scene.fires(commit)
        play(scene, *DENIED_IN_TIME)


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
        ASK, registers("b", "Reject:Create Ia"),
        says("b", YES, b=terminate()), *DENIED_IN_TIME,
    ],
    # The word of a connection that is not the active one does not count.
    "is elsewhere and says yes": [
        ASK, connect("b2"),
        registers("b2", "Address:127.0.0.1", b=SUPERSEDED),
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
        scene, _ = with_resolver()
        play(scene, on_line("b", "Policy:Password"), connect("a"), fails("lookup", error))
        assert denied_after(scene, wish()) == PATIENCE
        assert ["a fault" in failure for failure in logged.failures()] == (
            [True] if isinstance(error, RuntimeError) else []
        )

    @pytest.mark.parametrize("callee", REFUSALS)
    def test_once_asked(self, callee: str) -> None:
        """A callee that does not connect, or must not: it is told so, unless it said no itself."""
        play(a_scene(), *REFUSALS[callee])

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
            # Without a password it is another request.
            ("REQUEST\nIdentifier:Ia\nCallee:Ib\n\n", "no request of this kind is known here"),
        ],
    )
    def test_own_fault(self, text: str, cause: str) -> None:
        """What is wrong with the caller's own words is answered at once: it shows nothing of
        others. An address is validated like one that is registered (I12); no callee is asked.
        """
        a_scene(own_ports=(1201,)).says("a", text, a=bad(cause))

    def test_without_a_login(self) -> None:
        """A callee's call password is no login (D3)."""
        scene = Scene(accounts={"Ib": SECRET, "Ia": "pass of Ia"})
        scene.connect("a")
        cause = "log in first: REGISTER with an Identifier and a Password or Token"
        scene.says("a", wish("Ib", "Ib"), a=f"NOTIFY\nLogin Required.\nCause:{cause}\n\n")
