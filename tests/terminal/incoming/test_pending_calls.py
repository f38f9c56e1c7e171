"""The calls that a callee expects: each begun once, in time, and by its caller."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.messages.grammar import NOTIFY
from broker.messages.message import Message
from broker.tables.sessions import UNSPENT_SECONDS
from broker.terminal.incoming.pending_calls import PENDING_MOST, PendingCalls
from broker.terminal.registration.notices import parse_call_notice
from tests.terminal.keys import (
    ANNOUNCED,
    CALLER,
    KEY,
    PASSWORD,
    REPLY_PASSWORD,
    SESSION,
    an_expected_call,
)

#: An identifier of any language.
OSAKA = "山田太郎 大阪府門真市大字門真1006"


class AnnouncementTests:
    """Fig. 5e, read."""

    def test_whole(self) -> None:
        """All that a REQUEST is compared with is taken from the announcement (A11, A23)."""
        call = parse_call_notice(Message.of(NOTIFY, ANNOUNCED), 100.0)
        assert call is not None
        assert (call.session, call.caller, call.password) == (SESSION, CALLER, PASSWORD)
        assert (call.reply_password, call.key) == (REPLY_PASSWORD, KEY)
        assert call.until == 100.0 + UNSPENT_SECONDS == 130.0

    @pytest.mark.parametrize(
        "missing", ["Caller ID", "Password", "Encrypt Key", "Session", "Reply Password"]
    )
    def test_something_missing(self, missing: str) -> None:
        """An announcement that leaves anything out is none: no call is expected on it (I3)."""
        fields = {name: value for name, value in ANNOUNCED.items() if name != missing}
        assert parse_call_notice(Message.of(NOTIFY, fields), 0.0) is None

    def test_nothing_is_shown(self) -> None:
        """Neither password nor key stands in what Python shows of a call (I18)."""
        shown = repr(an_expected_call()) + str(an_expected_call())
        for secret in (PASSWORD, REPLY_PASSWORD, KEY):
            assert secret not in shown


class AdmissionTests:
    """Who may come."""

    @pytest.mark.parametrize(
        ("identifier", "password", "admitted"),
        [
            (CALLER, PASSWORD, True),
            (CALLER, PASSWORD[:-1], False),
            (CALLER, PASSWORD + "x", False),
            (CALLER, "", False),
            (CALLER, "пароль", False),
            (CALLER, REPLY_PASSWORD, False),
            ("I", PASSWORD, False),
            ("Iab", PASSWORD, False),
            ("ia", PASSWORD, False),
            ("", PASSWORD, False),
            ("山田太郎", PASSWORD, False),
            ("Ic", PASSWORD, False),
            ("山田太郎 大阪府門真市大字門真1007", PASSWORD, False),  # of any language, whole (A18)
            (OSAKA, PASSWORD, True),
        ],
    )
    def test_both_must_be_right(self, identifier: str, password: str, admitted: bool) -> None:
        """Identifier and password must both be equal, and nothing like them will do (A12, I4)."""
        call = an_expected_call(caller=OSAKA if "大阪" in identifier else CALLER)
        assert call.admits(identifier, password) is admitted


class ExpectedTests:
    """All calls that are expected."""

    def test_spent_once(self) -> None:
        """A call begins once; after that its session is as good as unknown (I7)."""
        expected, call = PendingCalls(), an_expected_call()
        expected.add(call)
        assert expected.find(SESSION, 1.0) is call
        assert expected.find(SESSION, 1.0) is call  # to look is not to begin
        assert expected.spend(call, 1.0)
        assert not expected.spend(call, 1.0)
        assert expected.find(SESSION, 1.0) is None

    def test_too_late(self) -> None:
        """After 30 s the call is not expected, also where the handshake had begun (I7)."""
        expected, call = PendingCalls(), an_expected_call(until=30.0)
        expected.add(call)
        assert expected.find(SESSION, 29.9) is call
        assert not expected.spend(call, 30.0)
        assert expected.find(SESSION, 1.0) is None  # a clock that steps back revives nothing (I10)

    def test_void(self) -> None:
        """A session that the mediator voids can't begin; nor can any, once it is lost (I2)."""
        expected = PendingCalls()
        calls = [an_expected_call(session=f"S{n}", caller=f"I{n}") for n in range(3)]
        for call in calls:
            expected.add(call)
        expected.discard("S0")
        expected.discard("S-unknown")
        assert not expected.spend(calls[0], 0.0)
        expected.clear()
        assert len(expected) == 0
        assert not any(expected.spend(call, 0.0) for call in calls)

    def test_one_a_caller(self) -> None:
        """A caller's new session replaces its unspent one, and no one else's (wire.md, 4)."""
        expected = PendingCalls()
        old = an_expected_call(session="S1")
        other = an_expected_call(session="S2", caller="Ic")
        new = an_expected_call(session="S3")
        for call in (old, other, new):
            expected.add(call)
        assert not expected.spend(old, 0.0)
        assert expected.spend(other, 0.0)
        assert expected.spend(new, 0.0)

    def test_what_gives_way(self) -> None:
        """What is added replaces the caller's own, what has expired (I22), and, of too many, the
        oldest (I15): which these are is told, since nothing is to be done for them (I16).
        """
        expected = PendingCalls()
        assert expected.add(an_expected_call(session="S1", until=40.0)) == []
        assert expected.add(an_expected_call(session="S2", caller="Ic", until=50.0)) == []
        assert expected.add(an_expected_call(session="S3", until=60.0)) == ["S1"]
        assert expected.add(an_expected_call(session="S4", caller="Id", until=80.0)) == ["S2"]
        for n in range(PENDING_MOST - 2):
            assert expected.add(an_expected_call(session=f"T{n}", caller=f"I{n}", until=85.0)) == []
        assert expected.add(an_expected_call(session="S5", caller="Ie", until=85.0)) == ["S3"]
        assert len(expected) == PENDING_MOST
        assert expected.find("S3", 55.0) is None
        assert expected.find("S4", 55.0) is not None

    def test_any(self) -> None:
        """Whether one is expected still; one that is too old is not (I10)."""
        expected, call = PendingCalls(), an_expected_call(until=30.0)
        assert not expected.any(0.0)
        expected.add(call)
        assert expected.any(29.9)
        assert not expected.any(30.0)
        expected.spend(call, 1.0)
        assert not expected.any(1.0)

    def test_another_call_of_the_same_session(self) -> None:
        """What was announced again for a session can't be begun by what was announced before."""
        expected, old = PendingCalls(), an_expected_call()
        expected.add(old)
        expected.add(replace(old, password="other"))
        assert not expected.spend(old, 0.0)
