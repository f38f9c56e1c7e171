"""The callee's doors: who is let in, what it costs to knock, and what a stranger learns."""

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
from tests.terminal.peers import House
from tests.terminal.speakers import Echo, Plain

DENIED = Message(NOTIFY, PERMISSION_DENIED)


class AdmissionTests:
    """A caller who was announced."""

    def test_whole_way(self) -> None:
        """REQUEST, answer with the reply password, first record, call (fig. 13, A12, A23)."""
        house = House(Echo).announce()
        knocker = house.knock()
        assert house.untouched  # the answer alone tells the application nothing
        knocker.prove(b"hello")
        ((caller, session, protocol),) = house.handler.calls
        assert (caller, session) == (CALLER, SESSION)
        assert protocol.transport.peer == CALLER
        assert house.begun == [SESSION]
        assert len(house.calls) == 1
        assert knocker.heard() == [(RecordType.DATA, b"hello")]
        knocker.client.send(knocker.records.seal(RecordType.END))
        assert knocker.heard() == [(RecordType.END, b"")]
        assert house.ends == [(SESSION, "Completed")]

    def test_in_any_pieces(self) -> None:
        """The REQUEST may come byte by byte, and the first record in one piece with the next."""
        house = House().announce()
        knocker = house.knock(send=False)
        for byte in framed(SESSION, knocker.body):
            knocker.client.feed(bytes((byte,)))
        knocker.prove(b"")
        knocker.client.send(
            knocker.records.seal(RecordType.DATA, b"one")
            + knocker.records.seal(RecordType.DATA, b"two")
        )
        assert house.handler.calls[0][2].received == b"onetwo"

    def test_answer_is_encrypted(self) -> None:
        """The answer shows an observer neither statement nor password (A12)."""
        house = House().announce()
        knocker = house.knock()
        sent = knocker.client.bytes()
        assert b"Accepted" not in sent
        assert REPLY_PASSWORD.encode() not in sent

    def test_spent_once(self) -> None:
        """A session that has begun is refused to whoever comes with it again (I7)."""
        house = House().announce()
        first = house.knock()
        first.prove()
        again = house.knock()
        replay = house.connect()
        replay.send(framed(SESSION, first.body))
        house.advance(HOLD_SECONDS)
        assert again.shut_out
        assert replay.closed
        assert replay.bytes() == b""
        assert len(house.handler.calls) == 1
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
    def test_wrong_identifier_or_password(self, wrong: dict[str, Any]) -> None:
        """Who holds the key, but not both the rest, gets fig. 5c, encrypted, and is closed on."""
        house = House().announce()
        knocker = house.knock(**wrong)
        assert knocker.answer() == DENIED
        assert knocker.client.closed
        assert house.untouched
        house.knock().prove()  # the session stands: a failed REQUEST never voids it
        assert house.begun == [SESSION]

    @pytest.mark.parametrize(
        "wrong",
        [{"key": "00" * 32}, {"caller": "Ic"}, {"callee": "Id"}],
        ids=repr,
    )
    def test_undecipherable(self, wrong: dict[str, Any]) -> None:
        """Who lacks the key is closed on without a byte, at once, and spends nothing."""
        house = House().announce()
        assert house.knock(**wrong).shut_out
        assert house.untouched
        house.knock().prove()
        assert house.begun == [SESSION]

    def test_garbage_for_a_body(self) -> None:
        """Bytes that were never a handshake are no better."""
        house = House().announce()
        for body in (b"x", bytes(BODY_BYTES), bytes(48)):
            client = house.connect()
            client.send(framed(SESSION, body))
            assert client.closed
            assert client.bytes() == b""
        assert house.untouched

    @pytest.mark.parametrize("why", ["no handler", "busy"])
    def test_nobody_to_take_it(self, why: str) -> None:
        """Where no call can be taken now, the caller gets fig. 5c (A25)."""
        house = House(taken=why != "no handler").announce()
        house.room = why != "busy"
        assert house.knock().answer() == DENIED
        assert house.untouched

    def test_busy_by_the_time_of_the_proof(self) -> None:
        """Of two callers at the door in one moment, one alone is taken where one may be (A25)."""
        house = House()
        house.announce()
        house.announce(session="S2", caller="Ic")
        first, second = house.knock(), house.knock(session="S2", caller="Ic", identifier="Ic")
        first.prove()
        house.room = False
        second.prove()
        assert [caller for caller, _, _ in house.handler.calls] == [CALLER]
        assert [kind for kind, _ in second.heard()] == [RecordType.ABORT]
        assert second.client.closed
        assert house.begun == [SESSION]
        assert not first.client.closed

    def test_application_takes_no_call(self) -> None:
        """An application may take no call: the caller learns it, the mediator that it failed."""
        house = House(lambda: None).announce()
        knocker = house.knock().prove()
        assert knocker.heard() == [(RecordType.ABORT, b"the call is not taken")]
        assert knocker.client.closed
        assert house.ends == [(SESSION, "Failed")]
        assert len(house.calls) == 0

    def test_application_fails(self) -> None:
        """An application that fails ends its own call; the next one is as good as any (I24)."""
        failing = [True]

        def make() -> IProtocol:
            if failing:
                failing.pop()
                raise RuntimeError("the application is wrong")
            return Plain()

        house = House(make).announce()
        knocker = house.knock().prove()
        assert knocker.heard() == [(RecordType.ABORT, b"the call is not taken")]
        assert house.ends == [(SESSION, "Failed")]
        house.announce(session="S2")
        house.knock(session="S2").prove()
        assert len(house.calls) == 1


class ReplayTests:
    """An observer of a REQUEST can send it again, and gains nothing (wire.md, 4)."""

    def test_replay_spends_nothing(self) -> None:
        """The replay is answered, can't go on, and the real caller still gets through (I7)."""
        house = House().announce()
        real = house.knock(send=False)
        replay = house.connect()
        replay.send(framed(SESSION, real.body))
        assert replay.bytes()  # nothing that it can read
        assert house.untouched
        real.send().prove(b"it is me")
        assert house.handler.calls[0][2].received == b"it is me"
        assert replay.closed  # the others close when one is confirmed
        assert len(house.handler.calls) == 1

    def test_replay_that_forges_a_record(self) -> None:
        """What it makes up for a first record closes it, and spends nothing (I7, I21)."""
        house = House().announce()
        real = house.knock(send=False)
        replay = house.connect()
        replay.send(framed(SESSION, real.body))
        replay.send((19).to_bytes(2, "big") + bytes(19))
        assert replay.closed
        assert house.untouched
        real.send().prove()
        assert house.begun == [SESSION]

    def test_replayed_record_of_another_attempt(self) -> None:
        """Another attempt's first record is no proof on this one: their keys differ (I7, I21)."""
        house = House().announce()
        first, second = house.knock(), house.knock()
        assert first.answer() == an_answer()
        record = Records(first.handshake.cipher()).seal(RecordType.DATA)
        second.client.send(record)
        assert second.client.closed
        assert house.untouched
        first.client.send(record)
        assert house.begun == [SESSION]

    def test_four_handshakes_a_session(self) -> None:
        """More than four attempts are closed without a byte; one confirmed closes the others."""
        house = House().announce()
        attempts = [house.knock() for _ in range(HANDSHAKES)]
        assert house.knock().shut_out
        assert not any(attempt.client.closed for attempt in attempts)
        attempts[2].prove()
        assert [attempt.client.closed for attempt in attempts] == [True, True, False, True]
        assert house.begun == [SESSION]

    def test_an_attempt_that_ends_leaves_room(self) -> None:
        """A place among the four is free again when its connection is gone, or has timed out."""
        house = House().announce()
        attempts = [house.knock() for _ in range(HANDSHAKES)]
        attempts[0].client.vanish()
        late = house.knock()
        assert house.knock().shut_out
        house.advance(HANDSHAKE_TIMEOUT)
        assert all(attempt.client.closed for attempt in [*attempts, late])
        house.knock().prove()
        assert house.begun == [SESSION]

    def test_other_sessions_have_their_own(self) -> None:
        """Attempts at one session take no place from another (I16)."""
        house = House().announce()
        house.announce(session="S2", caller="Ic")
        for _ in range(HANDSHAKES):
            house.knock()
        house.knock(session="S2", caller="Ic", identifier="Ic").prove()
        assert house.begun == ["S2"]


class TimeTests:
    """What happens when, and when it is too late."""

    def test_unknown_session(self) -> None:
        """An unknown session is held for 2 s, then closed on without a byte."""
        house = House()
        knocker = house.knock()
        house.advance(HOLD_SECONDS - 0.1)
        assert not knocker.client.closed
        house.advance(0.1)
        assert knocker.shut_out
        assert house.untouched

    def test_request_overtakes_its_announcement(self) -> None:
        """A REQUEST that comes before the mediator's word is answered when that comes."""
        house = House()
        knocker = house.knock()
        other = house.knock(session="S2")
        house.advance(HOLD_SECONDS - 0.1)
        house.announce()
        assert not other.client.bytes()
        knocker.prove()
        assert house.begun == [SESSION]
        house.advance(0.1)
        assert other.shut_out
        assert not knocker.client.closed

    def test_several_overtake(self) -> None:
        """Several attempts of one session may be held; each is then looked at by itself."""
        house = House()
        wrong, right = house.knock(key="00" * 32), house.knock()
        house.announce()
        assert wrong.shut_out
        right.prove()
        assert house.begun == [SESSION]

    def test_held_and_gone(self) -> None:
        """A held connection that is gone, or ends, is not answered when the announcement comes."""
        house = House()
        gone, ended = house.knock(), house.knock()
        gone.client.vanish()
        ended.client.end_input()
        house.announce()
        assert ended.shut_out
        assert gone.client.bytes() == b""
        house.knock().prove()

    def test_held_most(self) -> None:
        """64 are held, no more; a place is free again when one of them goes (I15)."""
        house = House()
        held = [house.knock(session=f"S{n}") for n in range(HELD_MOST)]
        assert house.knock(session="S-more").shut_out
        assert not any(knocker.client.closed for knocker in held)
        held[0].client.vanish()
        assert not house.knock(session="S-more").client.closed

    def test_announcement_expires(self) -> None:
        """After 30 s the session is unknown: its REQUEST is held, and closed on (I7)."""
        house = House().announce()
        house.advance(UNSPENT_SECONDS)
        knocker = house.knock()
        house.advance(HOLD_SECONDS)
        assert knocker.shut_out

    @pytest.mark.parametrize("how", ["expired", "voided", "line lost", "replaced"])
    def test_void_before_the_proof(self, how: str) -> None:
        """A session void by the time of the first record doesn't begin, though it shook hands."""
        house = House().announce()
        house.advance(UNSPENT_SECONDS - 1)
        knocker = house.knock()
        if how == "expired":
            house.advance(1)
        elif how == "voided":
            house.expected.discard(SESSION)
        elif how == "line lost":
            house.expected.clear()
        else:
            house.announce(session="S2")
        knocker.prove(b"too late")
        assert house.untouched
        assert [kind for kind, _ in knocker.heard()] == [RecordType.ABORT]
        assert knocker.client.closed

    def test_silent_connection(self) -> None:
        """Who connects and says nothing, or too little, is closed on after 5 s (I14)."""
        house = House().announce()
        silent, slow = house.connect(), house.connect()
        slow.type("REQUEST\nSession:")
        house.advance(HANDSHAKE_TIMEOUT - 0.1)
        assert not silent.closed
        house.advance(0.1)
        for client in (silent, slow):
            assert client.closed
            assert client.bytes() == b""

    def test_no_first_record(self) -> None:
        """Who has its answer and proves nothing is closed on after 5 s, and spends nothing."""
        house = House().announce()
        knocker = house.knock()
        house.advance(HANDSHAKE_TIMEOUT - 0.1)
        assert not knocker.client.closed
        house.advance(0.1)
        assert knocker.client.closed
        assert house.untouched

    def test_a_call_has_no_deadline(self) -> None:
        """Once proven, a call may be silent for as long as it likes."""
        house = House().announce()
        knocker = house.knock().prove()
        house.advance(3600)
        knocker.say(b"still here")
        assert house.handler.calls[0][2].received == b"still here"

    def test_denied_and_staying(self) -> None:
        """Who was denied and doesn't close is cut off; it can't stay (I15)."""
        house = House().announce()
        client = house.connect()
        client.transport.stop_reading_peer()
        client.send(framed(SESSION, a_handshake(initiator=True).write(a_request("Ic"))))
        house.advance(5)
        assert client.closed

    def test_stop(self) -> None:
        """Stopped, the doors close whatever is no call yet, and leave no timer behind."""
        house = House().announce()
        clients = [house.connect(), house.knock(session="S2").client, house.knock().client]
        house.doors.stop()
        assert all(client.closed for client in clients)
        assert house.clock.getDelayedCalls() == []
        assert house.untouched


class StrangerTests:
    """Whoever comes from outside."""

    def test_connection_requested(self) -> None:
        """The one thing believed is that a connection is asked for; nothing is answered (I26)."""
        house = House()
        client = house.connect()
        client.send(Message(NOTIFY, CONNECTION_REQUESTED))
        assert house.wakes == 1
        assert client.closed
        assert client.bytes() == b""

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
        ],
    )
    def test_anything_else(self, said: str) -> None:
        """Anything else is closed on at once, without a byte, and has no effect (I5, I26)."""
        house = House().announce()
        client = house.connect()
        client.type(said)
        assert client.closed
        assert client.bytes() == b""
        assert house.untouched
        assert house.wakes == 0
        house.knock().prove()  # and what was announced still stands
        assert house.begun == [SESSION]

    def test_second_request(self) -> None:
        """A connection takes one REQUEST: a second one closes it, whatever session it names."""
        house = House()
        knocker = house.knock()
        knocker.client.send(framed("S2", knocker.body))
        assert knocker.shut_out
        house.announce()
        assert house.untouched

    def test_second_request_after_the_answer(self) -> None:
        """After the answer come records; a REQUEST in clear is none, and spends nothing."""
        house = House().announce()
        knocker = house.knock()
        knocker.client.send(framed(SESSION, knocker.body))
        house.advance(HANDSHAKE_TIMEOUT)  # it reads as the beginning of a long record
        assert knocker.client.closed
        assert house.untouched

    def test_input_ends(self) -> None:
        """Who sends nothing more, and has shown nothing, is closed on without a byte."""
        house = House().announce()
        for said in ("", "REQUEST\n", f"REQUEST\nSession:{SESSION}\nLength:9\n\nabc"):
            client = house.connect()
            client.type(said)
            client.end_input()
            assert client.closed
            assert client.bytes() == b""

    def test_how_many_unproven(self) -> None:
        """128 connections may have proven nothing; one more is not taken (I15)."""
        house = House().announce()
        knocker = house.knock()
        clients = [house.connect() for _ in range(UNPROVEN_MOST - 1)]
        with pytest.raises(ConnectError):
            house.connect()
        clients[0].vanish()
        house.connect()
        knocker.prove()  # it has proven itself: its place is free
        house.connect()
        with pytest.raises(ConnectError):
            house.connect()

    def test_how_many_from_one_address(self) -> None:
        """One address holds 20 that have proven nothing (I16); others have their own."""
        house = House().announce()
        for _ in range(20):
            house.connect("192.0.2.1")
        with pytest.raises(ConnectError):
            house.connect("192.0.2.1")
        house.connect("192.0.2.2")

    def test_place_of_an_address_returns(self) -> None:
        """However many came and went from an address, as long as some stay, more may come."""
        house = House()
        house.connect("192.0.2.1")
        for _ in range(50):
            house.connect("192.0.2.1").vanish()
        house.connect("192.0.2.1")

    def test_calls_are_no_strangers(self) -> None:
        """Callers behind one address may be many, once each has proven itself (I23)."""
        house = House()
        for n in range(30):
            call: dict[str, Any] = {"session": f"S{n}", "caller": f"I{n}"}
            house.announce(**call)
            house.knock(host="192.0.2.1", identifier=f"I{n}", **call).prove()
        assert len(house.calls) == 30

    def test_nothing_secret_in_the_log(self) -> None:
        """Neither passwords nor keys are logged, whatever a caller does (I18)."""
        with the_log() as lines:
            house = House(lambda: None).announce()
            house.knock(password="a wrong guess")
            house.knock(identifier="Ic")
            house.knock(key="00" * 32)
            house.knock().prove()
        text = "\n".join(lines)
        assert SESSION in text
        for secret in (PASSWORD, REPLY_PASSWORD, KEY, "a wrong guess"):
            assert secret not in text

    def test_trace_shows_what_is_in_clear(self) -> None:
        """A trace of the doors holds sessions and lengths, and no secret (I18)."""
        seen: list[str] = []
        house = House(
            trace=lambda _, way, message: seen.append(way + " / ".join(message.masked()))
        ).announce()
        knocker = house.knock().prove()
        assert seen[0] == f"<REQUEST / Session:{SESSION} / Length:{len(knocker.body)}"
        assert len(seen) == 2
        assert seen[1].startswith(f">NOTIFY / Session:{SESSION} / Length:")

    def test_aborted_by_the_caller(self) -> None:
        """A caller's abort reaches the application with its cause."""
        house = House().announce()
        knocker = house.knock().prove()
        knocker.client.send(knocker.records.seal(RecordType.ABORT, b"changed my mind"))
        why = house.handler.calls[0][2].why
        assert isinstance(why, Aborted)
        assert why.cause == "changed my mind"
        assert house.ends == [(SESSION, "Failed")]
