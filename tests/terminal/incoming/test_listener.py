"""The callee's listener: which callers are admitted, what it costs, and what a stranger learns."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IProtocol

from broker.messages.grammar import NOTIFY
from broker.messages.message import Message
from broker.messages.statements import CONNECTION_REQUESTED, PERMISSION_DENIED
from broker.tables.sessions import UNSPENT_SECONDS
from broker.terminal.channel.handshake import BODY_BYTES
from broker.terminal.channel.records import Records, RecordType
from broker.terminal.errors import Aborted
from broker.terminal.incoming.listener import (
    HANDSHAKE_TIMEOUT,
    HANDSHAKES,
    HELD_MOST,
    HOLD_SECONDS,
    UNPROVEN_MOST,
)
from tests.support.log import the_log
from tests.terminal.keys import (
    CALLER,
    KEY,
    PASSWORD,
    REPLY_PASSWORD,
    SESSION,
    a_handshake,
    a_request,
    an_answer,
    framed,
)
from tests.terminal.peers import ListenerScene
from tests.terminal.speakers import Echo, Plain

DENIED = Message(NOTIFY, PERMISSION_DENIED)


def still_expected(scene: ListenerScene) -> None:
    """What came had no effect, and spent nothing: the session stands for its caller."""
    assert scene.untouched
    scene.requests().prove()
    assert scene.begun == [SESSION]


@pytest.fixture
def scene() -> ListenerScene:
    """A call is announced."""
    return ListenerScene().announce()


class AdmissionTests:
    """A caller who was announced."""

    def test_whole_way(self) -> None:
        """REQUEST, answer with the reply password, first record, call (fig. 13, A12, A23); in
        whatever pieces they come.
        """
        scene = ListenerScene(Echo).announce()
        requester = scene.requests(send=False)
        for byte in framed(SESSION, requester.body):
            requester.client.feed(bytes((byte,)))
        assert scene.untouched  # the answer alone tells the application nothing
        requester.prove()
        ((caller, session, protocol),) = scene.handler.calls
        assert (caller, session) == (CALLER, SESSION)
        assert protocol.transport.peer == CALLER
        assert scene.begun == [SESSION]
        assert len(scene.calls) == 1
        seal = requester.records.seal
        requester.client.send(seal(RecordType.DATA, b"one") + seal(RecordType.DATA, b"two"))
        assert requester.heard() == [(RecordType.DATA, b"one"), (RecordType.DATA, b"two")]
        requester.client.send(seal(RecordType.END))
        assert requester.heard() == [(RecordType.END, b"")]
        assert scene.ends == [(SESSION, "Completed")]

    def test_answer_is_encrypted(self, scene: ListenerScene) -> None:
        """The answer shows an observer neither statement nor password (A12)."""
        sent = scene.requests().client.bytes()
        assert b"Accepted" not in sent
        assert REPLY_PASSWORD.encode() not in sent

    def test_spent_once(self, scene: ListenerScene) -> None:
        """A session that has begun is refused to all that come with it again (I7)."""
        first = scene.requests()
        first.prove()
        again = scene.requests()
        replay = scene.connect()
        replay.send(framed(SESSION, first.body))
        scene.advance(HOLD_SECONDS)
        assert again.shut_out
        assert (replay.closed, replay.bytes()) == (True, b"")
        assert len(scene.handler.calls) == 1
        assert not first.client.closed

    @pytest.mark.parametrize(
        "wrong",
        [
            {"identifier": "Ic"},
            {"identifier": "I"},
            {"password": PASSWORD[:-1]},
            {"password": PASSWORD.swapcase()},
            {"password": "пароль"},
            {"password": REPLY_PASSWORD},
            {"request": Message("REQUEST", Identifier=CALLER)},
            {"request": Message("REQUEST", Password=PASSWORD)},
            {"request": Message("REGISTER", Identifier=CALLER, Password=PASSWORD)},
        ],
        ids=repr,
    )
    def test_wrong_identifier_or_password(
        self, wrong: dict[str, Any], scene: ListenerScene
    ) -> None:
        """Who holds the key, but not both the rest, gets fig. 5c, encrypted, and is closed on."""
        requester = scene.requests(**wrong)
        assert requester.answer() == DENIED
        assert requester.client.closed
        still_expected(scene)

    @pytest.mark.parametrize("why", ["no handler", "busy"])
    def test_nobody_to_take_it(self, why: str) -> None:
        """Where no call can be taken now, the caller gets fig. 5c (A25)."""
        scene = ListenerScene(taken=why != "no handler").announce()
        scene.room = why != "busy"
        assert scene.requests().answer() == DENIED
        assert scene.untouched

    def test_busy_by_the_time_of_the_proof(self) -> None:
        """Of two callers that arrive in one moment, one alone is taken where one may be (A25)."""
        scene = ListenerScene()
        scene.announce()
        scene.announce(session="S2", caller="Ic")
        first, second = scene.requests(), scene.requests(session="S2", caller="Ic", identifier="Ic")
        first.prove()
        scene.room = False
        second.prove()
        assert [caller for caller, _, _ in scene.handler.calls] == [CALLER]
        assert [kind for kind, _ in second.heard()] == [RecordType.ABORT]
        assert second.client.closed
        assert scene.begun == [SESSION]
        assert not first.client.closed

    @pytest.mark.parametrize("fails", [False, True])
    def test_application_takes_no_call(self, fails: bool) -> None:
        """An application may take no call, or fail: the caller learns that it isn't taken, the
        mediator that it failed, and the next call is as good as any (I24).
        """
        first = [True]

        def make() -> IProtocol | None:
            if first and fails:
                first.pop()
                raise RuntimeError("the application is wrong")
            return Plain() if not first or not first.pop() else None

        scene = ListenerScene(make).announce()
        requester = scene.requests().prove()
        assert requester.heard() == [(RecordType.ABORT, b"the call is not taken")]
        assert requester.client.closed
        assert scene.ends == [(SESSION, "Failed")]
        assert len(scene.calls) == 0
        scene.announce(session="S2")
        scene.requests(session="S2").prove()
        assert len(scene.calls) == 1


class ReplayTests:
    """An observer of a REQUEST can send it again, and gains nothing (wire.md, 4)."""

    def test_replay_spends_nothing(self, scene: ListenerScene) -> None:
        """The replay is answered, can't go on, and the real caller still gets through (I7)."""
        real = scene.requests(send=False)
        replay = scene.connect()
        replay.send(framed(SESSION, real.body))
        assert replay.bytes()  # nothing that it can read
        assert scene.untouched
        real.send().prove(b"it is me")
        assert scene.handler.calls[0][2].received == b"it is me"
        assert replay.closed  # the others close when one is confirmed
        assert len(scene.handler.calls) == 1

    def test_replay_that_forges_a_record(self, scene: ListenerScene) -> None:
        """What it makes up for a first record closes it, and spends nothing (I7, I21)."""
        real = scene.requests(send=False)
        replay = scene.connect()
        replay.send(framed(SESSION, real.body))
        replay.send((19).to_bytes(2, "big") + bytes(19))
        assert replay.closed
        still_expected(scene)

    def test_replayed_record_of_another_attempt(self, scene: ListenerScene) -> None:
        """Another attempt's first record is no proof on this one: their keys differ (I7, I21)."""
        first, second = scene.requests(), scene.requests()
        assert first.answer() == an_answer()
        record = Records(first.handshake.cipher()).seal(RecordType.DATA)
        second.client.send(record)
        assert second.client.closed
        assert scene.untouched
        first.client.send(record)
        assert scene.begun == [SESSION]

    def test_four_handshakes_a_session(self, scene: ListenerScene) -> None:
        """More than four attempts are closed without a byte; one confirmed closes the others."""
        attempts = [scene.requests() for _ in range(HANDSHAKES)]
        assert scene.requests().shut_out
        assert not any(attempt.client.closed for attempt in attempts)
        attempts[2].prove()
        assert [attempt.client.closed for attempt in attempts] == [True, True, False, True]
        assert scene.begun == [SESSION]

    def test_an_attempt_that_ends_leaves_room(self, scene: ListenerScene) -> None:
        """A place among the four is free again when its connection is gone, or has timed out."""
        attempts = [scene.requests() for _ in range(HANDSHAKES)]
        attempts[0].client.vanish()
        late = scene.requests()
        assert scene.requests().shut_out
        scene.advance(HANDSHAKE_TIMEOUT)
        assert all(attempt.client.closed for attempt in [*attempts, late])
        still_expected(scene)

    def test_other_sessions_have_their_own(self, scene: ListenerScene) -> None:
        """Attempts at one session take no place from another (I16)."""
        scene.announce(session="S2", caller="Ic")
        for _ in range(HANDSHAKES):
            scene.requests()
        scene.requests(session="S2", caller="Ic", identifier="Ic").prove()
        assert scene.begun == ["S2"]


class TimeTests:
    """What happens when, and when it is too late."""

    @pytest.mark.parametrize("known", [False, True], ids=["unknown", "expired"])
    def test_unknown_session(self, known: bool) -> None:
        """An unknown session, as one is after 30 s (I7), is held for 2 s, then closed on without a
        byte.
        """
        scene = ListenerScene()
        if known:
            scene.announce()
            scene.advance(UNSPENT_SECONDS)
        requester = scene.requests()
        scene.advance(HOLD_SECONDS - 0.1)
        assert not requester.client.closed
        scene.advance(0.1)
        assert requester.shut_out
        assert scene.untouched

    def test_request_overtakes_its_announcement(self) -> None:
        """A REQUEST that comes before the mediator's word is answered when that comes."""
        scene = ListenerScene()
        requester = scene.requests()
        other = scene.requests(session="S2")
        scene.advance(HOLD_SECONDS - 0.1)
        scene.announce()
        assert not other.client.bytes()
        requester.prove()
        assert scene.begun == [SESSION]
        scene.advance(0.1)
        assert other.shut_out
        assert not requester.client.closed

    def test_several_overtake(self) -> None:
        """Several attempts of one session may be held; each is then looked at by itself, unless it
        is gone, or has ended.
        """
        scene = ListenerScene()
        gone, ended = scene.requests(), scene.requests()
        wrong, right = scene.requests(key="00" * 32), scene.requests()
        gone.client.vanish()
        ended.client.end_input()
        scene.announce()
        assert ended.shut_out
        assert gone.client.bytes() == b""
        assert wrong.shut_out
        right.prove()
        assert scene.begun == [SESSION]

    def test_held_most(self) -> None:
        """64 are held; a place is free again when one of them goes (I15)."""
        scene = ListenerScene()
        held = [scene.requests(session=f"S{n}") for n in range(HELD_MOST)]
        assert scene.requests(session="S-more").shut_out
        assert not any(requester.client.closed for requester in held)
        held[0].client.vanish()
        assert not scene.requests(session="S-more").client.closed

    @pytest.mark.parametrize("how", ["expired", "voided", "line lost", "replaced"])
    def test_void_before_the_proof(self, how: str, scene: ListenerScene) -> None:
        """A session void by the time of the first record doesn't begin, though it shook hands."""
        scene.advance(UNSPENT_SECONDS - 1)
        requester = scene.requests()
        if how == "expired":
            scene.advance(1)
        elif how == "voided":
            scene.expected.discard(SESSION)
        elif how == "line lost":
            scene.expected.clear()
        else:
            scene.announce(session="S2")
        requester.prove(b"too late")
        assert scene.untouched
        assert [kind for kind, _ in requester.heard()] == [RecordType.ABORT]
        assert requester.client.closed

    @pytest.mark.parametrize("how", ["silent", "slow", "no first record"])
    def test_too_slow(self, how: str, scene: ListenerScene) -> None:
        """A peer that says nothing, or too little, or proves nothing after its answer, is closed on
        in time, and spends nothing (I14).
        """
        client = scene.requests().client if how == "no first record" else scene.connect()
        if how == "slow":
            client.type("REQUEST\nSession:")
        scene.advance(HANDSHAKE_TIMEOUT - 0.1)
        assert not client.closed
        scene.advance(0.1)
        assert client.closed
        assert how == "no first record" or client.bytes() == b""
        assert scene.untouched

    def test_a_call_has_no_deadline(self, scene: ListenerScene) -> None:
        """Once proven, a call may be silent for as long as it likes."""
        requester = scene.requests().prove()
        scene.advance(3600)
        requester.say(b"still here")
        assert scene.handler.calls[0][2].received == b"still here"

    def test_denied_and_staying(self, scene: ListenerScene) -> None:
        """Who was denied and doesn't close is cut off; it can't stay (I15)."""
        client = scene.connect()
        client.transport.stop_reading_peer()
        client.send(framed(SESSION, a_handshake(initiator=True).write(a_request("Ic"))))
        scene.advance(5)
        assert client.closed

    def test_stop(self, scene: ListenerScene) -> None:
        """Stopped, the listener closes all that is no call yet, and leaves no timer behind."""
        clients = [scene.connect(), scene.requests(session="S2").client, scene.requests().client]
        scene.listener.stop()
        assert all(client.closed for client in clients)
        assert scene.clock.getDelayedCalls() == []
        assert scene.untouched


#: What may be another's than the session's.
OTHERS = {"key": "00" * 32, "caller": "Ic", "callee": "Id"}


class StrangerTests:
    """Anyone may connect from outside."""

    def test_connection_requested(self) -> None:
        """The one thing believed is that a connection is asked for; nothing is answered (I26)."""
        scene = ListenerScene()
        client = scene.connect()
        client.send(Message(NOTIFY, CONNECTION_REQUESTED))
        assert scene.wakes == 1
        assert (client.closed, client.bytes()) == (True, b"")

    @pytest.mark.parametrize(
        "said",
        [
            "NOTIFY\nCaller ID:Ia\nPassword:p\nEncrypt Key:" + KEY + "\nSession:S9\n"
            "Reply Password:r\n\n",
            f"NOTIFY\nSession:{SESSION}\nTerminate.\n\n",
            "NOTIFY\nSuperseded.\n\n",
            "QUERY\nSTATUS\n\n",
            "REGISTER\nIdentifier:Ib\n\n",
            "REQUEST\nIdentifier:Ia\nPassword:p\n\n",
            f"REQUEST\nSession:{SESSION}\n\n",
            f"REQUEST\nSession:{SESSION}\nLength:0\n\n",
            f"REQUEST\nSession:{SESSION}\nLength:{BODY_BYTES + 1}\n\n",
            "REQUEST\nLength:10\n\n0123456789",
            f"NOTIFY\nSession:{SESSION}\nLength:3\n\nabc",
            "HELLO\n\n",
            "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
            "REQUEST\n" + "x" * 1100 + "\n\n",
            "REQUEST\n" + "Cause:x\n" * 70 + "\n",
            "REQUEST\n" + 9 * ("x" * 900 + "\n") + "\n",
            # Without the session's key, or with a body that is none.
            *(framed(SESSION, body) for body in (b"x", bytes(48), bytes(BODY_BYTES))),
            *({name: other} for name, other in OTHERS.items()),
        ],
        ids=repr,
    )
    def test_anything_else(self, said: Any, scene: ListenerScene) -> None:
        """Anything else is closed on at once, without a byte, and has no effect (I5, I26)."""
        if isinstance(said, dict):
            client = scene.requests(**said).client
        else:
            client = scene.connect()
            client.send(said if isinstance(said, bytes) else said.encode())
        assert (client.closed, client.bytes()) == (True, b"")
        assert scene.wakes == 0
        still_expected(scene)

    def test_second_request(self) -> None:
        """A connection takes one REQUEST: a second one closes it, whatever session it names."""
        scene = ListenerScene()
        requester = scene.requests()
        requester.client.send(framed("S2", requester.body))
        assert requester.shut_out
        scene.announce()
        assert scene.untouched

    def test_second_request_after_the_answer(self, scene: ListenerScene) -> None:
        """After the answer come records; a REQUEST in clear is none, and spends nothing."""
        requester = scene.requests()
        requester.client.send(framed(SESSION, requester.body))
        scene.advance(HANDSHAKE_TIMEOUT)  # it reads as the beginning of a long record
        assert requester.client.closed
        assert scene.untouched

    def test_input_ends(self, scene: ListenerScene) -> None:
        """Who sends nothing more, and has shown nothing, is closed on without a byte."""
        for said in ("", "REQUEST\n", f"REQUEST\nSession:{SESSION}\nLength:9\n\nabc"):
            client = scene.connect()
            client.type(said)
            client.end_input()
            assert (client.closed, client.bytes()) == (True, b"")

    def test_how_many_unproven(self, scene: ListenerScene) -> None:
        """128 connections may have proven nothing; one more is not taken (I15)."""
        requester = scene.requests()
        clients = [scene.connect() for _ in range(UNPROVEN_MOST - 1)]
        with pytest.raises(ConnectError):
            scene.connect()
        clients[0].vanish()
        scene.connect()
        requester.prove()  # it has proven itself: its place is free
        scene.connect()
        with pytest.raises(ConnectError):
            scene.connect()

    def test_how_many_from_one_address(self, scene: ListenerScene) -> None:
        """One address holds 20 that have proven nothing (I16), however many came and went; others
        have their own.
        """
        scene.connect("192.0.2.1")
        for _ in range(50):
            scene.connect("192.0.2.1").vanish()
        for _ in range(19):
            scene.connect("192.0.2.1")
        with pytest.raises(ConnectError):
            scene.connect("192.0.2.1")
        scene.connect("192.0.2.2")

    def test_calls_are_no_strangers(self) -> None:
        """Callers behind one address may be many, once each has proven itself (I23)."""
        scene = ListenerScene()
        for n in range(30):
            call: dict[str, Any] = {"session": f"S{n}", "caller": f"I{n}"}
            scene.announce(**call)
            scene.requests(host="192.0.2.1", identifier=f"I{n}", **call).prove()
        assert len(scene.calls) == 30

    def test_nothing_secret_in_the_log(self) -> None:
        """Neither passwords nor keys are logged, whatever a caller does (I18)."""
        with the_log() as lines:
            scene = ListenerScene(lambda: None).announce()
            scene.requests(password="a wrong guess")
            scene.requests(identifier="Ic")
            scene.requests(key="00" * 32)
            scene.requests().prove()
        text = "\n".join(lines)
        assert SESSION in text
        for secret in (PASSWORD, REPLY_PASSWORD, KEY, "a wrong guess"):
            assert secret not in text

    def test_trace_shows_what_is_in_clear(self) -> None:
        """A trace of the listener holds sessions and lengths, and no secret (I18)."""
        seen: list[str] = []
        scene = ListenerScene(
            trace=lambda _, way, message: seen.append(way + " / ".join(message.masked()))
        ).announce()
        requester = scene.requests().prove()
        assert seen[0] == f"<REQUEST / Session:{SESSION} / Length:{len(requester.body)}"
        assert len(seen) == 2
        assert seen[1].startswith(f">NOTIFY / Session:{SESSION} / Length:")

    def test_aborted_by_the_caller(self, scene: ListenerScene) -> None:
        """A caller's abort reaches the application with its cause."""
        requester = scene.requests().prove()
        requester.client.send(requester.records.seal(RecordType.ABORT, b"changed my mind"))
        why = scene.handler.calls[0][2].why
        assert isinstance(why, Aborted)
        assert why.cause == "changed my mind"
        assert scene.ends == [(SESSION, "Failed")]
