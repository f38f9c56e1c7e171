"""The ways of one call: begun one after the other, and the first that stands wins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IProtocol
from twisted.internet.task import Clock

from broker.terminal.candidates import BACK, DIRECT, HOLE_PUNCH, LOCAL, Candidate, FailedCandidate
from broker.terminal.errors import CallDenied, CallFailed, NotMet
from broker.terminal.outgoing.connector import (
    CONNECTION_ATTEMPT_DELAY,
    SLOWER,
    Connector,
)
from tests.support.clock import advance
from tests.support.log import the_log
from tests.terminal.network import Outcome
from tests.terminal.speakers import Plain

HOST = "192.0.2.7"
#: One of each kind, as it is told.
WAYS = {
    kind: Candidate(kind, HOST, port)
    for port, kind in enumerate((LOCAL, DIRECT, HOLE_PUNCH, BACK), 1)
}


class Attempt:
    """A way that ends as a test says."""

    def __init__(self, course: Course, kind: str) -> None:
        self.candidate = WAYS[kind]
        self.waits = kind == BACK
        self._course = course
        self._kind = kind
        self._connector: Any = None

    def start(self, connector: Connector) -> Deferred[IProtocol]:
        """Begin it."""
        course, kind = self._course, self._kind
        self._connector = connector
        course.begun.append((kind, course.clock.seconds()))
        end = course.at_once.get(kind)
        if isinstance(end, Exception):
            return fail(end)
        if end is not None:
            self.opens()
            return succeed(end)
        taken: Deferred[IProtocol] = Deferred(lambda _: course.ended.append(f"{kind} given up"))
        course.under_way[kind] = taken
        return taken

    def opens(self) -> Sequence[FailedCandidate]:
        """Its channel is about to open."""
        failed: Sequence[FailedCandidate] = self._connector.claim(self.candidate)
        self._course.ended.append(f"{self._kind} opens")
        return failed


class Course:
    """A race whose ways end as a test says.

    :ivar begun: when each way was begun, in order
    :ivar under_way: what each way has not ended with
    :ivar ended: what has happened, in order: who was given up, and who has opened
    :ivar outcome: what becomes of the call
    """

    def __init__(
        self,
        *kinds: str,
        at_once: dict[str, Any] | None = None,
        tried: Sequence[FailedCandidate] = (),
    ) -> None:
        """
        :param at_once: ways that end as soon as they are begun: with a protocol or an exception
        """
        self.clock = Clock()
        self.begun: list[tuple[str, float]] = []
        self.under_way: dict[str, Deferred[IProtocol]] = {}
        self.ended: list[str] = []
        self.protocol = Plain()
        self.at_once = at_once or {}
        attempts = [Attempt(self, kind) for kind in kinds]
        self._attempts = dict(zip(kinds, attempts, strict=True))
        self.race = Connector(self.clock, "Ib", attempts, tried)
        self.outcome = Outcome(self.race.done)

    def fails(self, kind: str, error: Exception | str = "no route") -> None:
        """A way leads nowhere."""
        self.under_way[kind].errback(NotMet(error) if isinstance(error, str) else error)

    def opens(self, kind: str) -> Sequence[FailedCandidate]:
        """Its channel is about to open; the ways that did not lead there."""
        return self._attempts[kind].opens()

    def stands(self, kind: str) -> Sequence[FailedCandidate]:
        """Its channel opens."""
        tried = self.opens(kind)
        self.under_way[kind].callback(self.protocol)
        return tried

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        advance(self.clock, seconds)

    @property
    def kinds(self) -> list[str]:
        """Those that were begun, in order."""
        return [kind for kind, _ in self.begun]

    @property
    def at_rest(self) -> bool:
        """Whether no timer is left."""
        return self.clock.getDelayedCalls() == []


def each(*kinds: str, why: str = "no route") -> str:
    """What a call in which several ways were tried has failed with."""
    return "Ib could not be reached: " + "; ".join(f"{WAYS[kind]}: {why}" for kind in kinds)


NOWHERE = NotMet("no route")


class OrderTests:
    """When a candidate is begun."""

    @pytest.mark.parametrize(
        ("kinds", "at_once", "fails", "begun"),
        [
            # Each 0.25 s after the one before, which goes on, in the order given.
            ((LOCAL, DIRECT, HOLE_PUNCH), {}, None, (0, 0.25, 0.5)),
            # The next one begins as the one before fails, and the one after that 0.25 s later.
            ((LOCAL, DIRECT, HOLE_PUNCH), {}, (0.1, LOCAL), (0, 0.1, 0.35)),
            # Whichever fails, nothing is gained by waiting on.
            ((LOCAL, DIRECT, HOLE_PUNCH), {}, (0.3, LOCAL), (0, 0.25, 0.3)),
            # One that fails as it begins takes no time from those after it, one or several.
            ((LOCAL, DIRECT, HOLE_PUNCH), {LOCAL: NOWHERE}, None, (0, 0, 0.25)),
            ((LOCAL, DIRECT, HOLE_PUNCH), {LOCAL: NOWHERE, DIRECT: NOWHERE}, None, (0, 0, 0)),
            ((LOCAL, DIRECT, HOLE_PUNCH), {DIRECT: NOWHERE}, None, (0, 0.25, 0.25)),
            # What only waits holds up no other, nor does it hurry any when it fails.
            ((BACK, LOCAL, DIRECT), {}, None, (0, 0, 0.25)),
            ((BACK, LOCAL, DIRECT), {}, (0.1, BACK), (0, 0, 0.25)),
            ((DIRECT, BACK), {}, None, (0, 0.25)),
        ],
    )
    def test_order(
        self,
        kinds: tuple[str, ...],
        at_once: dict[str, Any],
        fails: tuple[float, str] | None,
        begun: tuple[float, ...],
    ) -> None:
        """Each is begun once, in order, 0.25 s apart, or as soon as the one before has failed."""
        assert CONNECTION_ATTEMPT_DELAY == 0.25
        course = Course(*kinds, at_once=at_once)
        if fails is not None:
            course.advance(fails[0])
            course.fails(fails[1])
        while course.clock.getDelayedCalls():
            course.advance(0.01)
        assert course.kinds == list(kinds)
        assert [at for _, at in course.begun] == pytest.approx(begun)
        assert (course.ended, course.outcome.done) == ([], False)
        course.advance(10)
        assert len(course.begun) == len(kinds)


class WonTests:
    """The first way that stands is the call."""

    def test_no_other_begins(self) -> None:
        """Neither as it opens nor ever after."""
        course = Course(LOCAL, DIRECT, HOLE_PUNCH)
        course.opens(LOCAL)
        course.advance(10)
        assert course.kinds == [LOCAL]
        course.under_way[LOCAL].callback(course.protocol)
        assert course.outcome.value is course.protocol
        assert course.kinds == [LOCAL]

    @pytest.mark.parametrize(
        ("kinds", "seconds", "fails", "wins", "others"),
        [
            # Failed, or slower, or not begun at all.
            (
                (BACK, LOCAL, DIRECT, HOLE_PUNCH),
                0.0,
                {LOCAL: "refused"},
                DIRECT,
                [(LOCAL, "refused"), (HOLE_PUNCH, SLOWER), (BACK, SLOWER)],
            ),
            # In the order in which they failed.
            (
                (LOCAL, DIRECT, HOLE_PUNCH),
                0.5,
                {DIRECT: "one", LOCAL: "two"},
                HOLE_PUNCH,
                [(DIRECT, "one"), (LOCAL, "two")],
            ),
            ((DIRECT,), 0.0, {}, DIRECT, []),
            # Whichever it is.
            *(
                ((BACK, LOCAL, DIRECT, HOLE_PUNCH), 0.3, {}, wins, [(HOLE_PUNCH, SLOWER), *others])
                for wins, others in (
                    (LOCAL, [(BACK, SLOWER), (DIRECT, SLOWER)]),
                    (DIRECT, [(BACK, SLOWER), (LOCAL, SLOWER)]),
                    (BACK, [(LOCAL, SLOWER), (DIRECT, SLOWER)]),
                )
            ),
        ],
    )
    def test_others(
        self,
        kinds: tuple[str, ...],
        seconds: float,
        fails: dict[str, str],
        wins: str,
        others: list[tuple[str, str]],
    ) -> None:
        """Whichever it is, the call is its protocol's, which learns what became of each other
        candidate; how those end that are given up changes nothing, and is in no log.
        """
        course = Course(*kinds)
        course.advance(seconds)
        for kind, why in fails.items():
            course.fails(kind, why)
        expected = [FailedCandidate(WAYS[kind], why) for kind, why in others]
        with the_log() as lines:
            assert list(course.stands(wins)) == expected
        assert course.outcome.value is course.protocol
        assert course.race.won == WAYS[wins]
        assert all(given_up.called for given_up in course.under_way.values())
        assert lines == []
        assert course.at_rest

    @pytest.mark.parametrize("at_once", [False, True])
    def test_the_others_end_before_it_opens(self, at_once: bool) -> None:
        """There is one channel in a session: what could still open one is given up first, also
        where the winner opens as it begins; those after it are not begun.
        """
        course = Course(
            BACK, LOCAL, DIRECT, HOLE_PUNCH, at_once={DIRECT: Plain()} if at_once else {}
        )
        course.advance(0.3)
        if not at_once:
            course.stands(DIRECT)
        assert course.ended == [f"{BACK} given up", f"{LOCAL} given up", f"{DIRECT} opens"]
        assert course.outcome.value is not None
        assert course.kinds == [BACK, LOCAL, DIRECT]
        assert course.at_rest

    def test_its_application_gives_nothing(self) -> None:
        """A way that has opened and fails then has spent the session: no other can do better."""
        course = Course(LOCAL, DIRECT)
        course.opens(LOCAL)
        course.fails(LOCAL, CallFailed("the application gave no protocol for the call"))
        assert str(course.outcome.error) == "the application gave no protocol for the call"
        assert course.kinds == [LOCAL]
        assert course.race.won == WAYS[LOCAL]
        assert course.at_rest


class FailedTests:
    """None leads there."""

    @pytest.mark.parametrize(
        ("kinds", "at_once", "fails"),
        [
            # In the order in which they fail, whichever that is.
            ((BACK, LOCAL, DIRECT, HOLE_PUNCH), False, (LOCAL, DIRECT, HOLE_PUNCH, BACK)),
            ((LOCAL, DIRECT), False, (DIRECT, LOCAL)),
            # All as they begin.
            ((LOCAL, DIRECT, HOLE_PUNCH), True, (LOCAL, DIRECT, HOLE_PUNCH)),
        ],
    )
    def test_each_is_named(
        self, kinds: tuple[str, ...], at_once: bool, fails: tuple[str, ...]
    ) -> None:
        """One error, when the last has failed; it says of each way what became of it, in words and
        as values.
        """
        course = Course(*kinds, at_once=dict.fromkeys(kinds, NOWHERE) if at_once else {})
        course.advance(0.25)
        for kind in () if at_once else fails:
            course.advance(100 if kind == fails[-1] else 0)
            assert not course.outcome.done
            course.fails(kind)
        error = course.outcome.error
        assert type(error) is CallFailed
        assert str(error) == each(*fails)
        assert error.failed_candidates == tuple(
            FailedCandidate(WAYS[kind], "no route") for kind in fails
        )
        assert course.race.won is None
        assert course.at_rest

    def test_in_words(self) -> None:
        """What a way is called, with where it leads."""
        assert [str(WAYS[kind]) for kind in (LOCAL, DIRECT, HOLE_PUNCH, BACK)] == [
            "in the local network at 192.0.2.7:1",
            "directly at 192.0.2.7:2",
            "by hole punching at 192.0.2.7:3",
            "by connecting back to us at 192.0.2.7:4",
        ]
        assert str(Candidate(DIRECT, "2001:db8::7", 1203)) == "directly at [2001:db8::7]:1203"

    @pytest.mark.parametrize("met", [False, True])
    def test_the_only_one(self, met: bool) -> None:
        """It is said which candidate that was; what it met, if anything, speaks for itself."""
        course = Course(DIRECT)
        why = "Ib closed the connection without an answer" if met else "no route"
        course.fails(DIRECT, CallFailed(why) if met else why)
        error = course.outcome.error
        assert str(error) == (why if met else f"Ib could not be reached {WAYS[DIRECT]}: {why}")
        assert isinstance(error, CallFailed)
        assert error.failed_candidates == (FailedCandidate(WAYS[DIRECT], why),)

    def test_failed_already(self) -> None:
        """What could not even be begun is told of with the rest, and first."""
        before = FailedCandidate(WAYS[BACK], "no router answers")
        course = Course(DIRECT, tried=[before])
        course.fails(DIRECT)
        assert str(course.outcome.error) == (
            f"Ib could not be reached: {WAYS[BACK]}: no router answers; {WAYS[DIRECT]}: no route"
        )
        assert list(Course(DIRECT, tried=[before]).stands(DIRECT)) == [before]

    def test_denied(self) -> None:
        """The callee's own word ends it at once: the others are given up, and none is begun."""
        course = Course(BACK, LOCAL, DIRECT, HOLE_PUNCH)
        course.advance(0.3)
        course.fails(DIRECT, CallDenied("Ib denied the call"))
        assert type(course.outcome.error) is CallDenied
        assert course.ended == [f"{BACK} given up", f"{LOCAL} given up"]
        course.advance(10)
        assert course.kinds == [BACK, LOCAL, DIRECT]
        assert course.race.won is None
        assert course.at_rest
        course = Course(LOCAL, DIRECT, at_once={LOCAL: CallDenied("Ib denied the call")})
        assert type(course.outcome.error) is CallDenied
        assert course.kinds == [LOCAL]  # nothing is begun after it
        course = Course(BACK, LOCAL)
        course.fails(BACK, CallDenied("Ib denied the call"))
        assert (course.race.won, course.outcome.done) == (None, True)

    def test_who_answered_is_not_it(self) -> None:
        """What a stranger at one address does leaves the others as they are (A23)."""
        course = Course(LOCAL, DIRECT)
        course.fails(LOCAL, CallFailed("what answered at Ib's address is not it"))
        assert not course.outcome.done
        course.stands(DIRECT)
        assert course.outcome.value is course.protocol

    def test_something_else(self) -> None:
        """What was not foreseen ends the call as what it is, and is not taken for a way's end."""
        course = Course(BACK, LOCAL, DIRECT)
        error = RuntimeError("the program is wrong")
        course.fails(LOCAL, error)
        assert course.outcome.error is error
        assert course.ended == [f"{BACK} given up"]
        assert course.kinds == [BACK, LOCAL]
        assert course.at_rest


class CancelTests:
    """Giving up."""

    def test_all_end(self) -> None:
        """What is under way is given up, what was to come is not begun, no timer is left."""
        course = Course(BACK, LOCAL, DIRECT, HOLE_PUNCH)
        course.advance(0.3)
        course.race.done.cancel()
        assert isinstance(course.outcome.error, CancelledError)
        assert course.ended == [f"{kind} given up" for kind in (BACK, LOCAL, DIRECT)]
        assert course.race.won is None
        assert course.at_rest
        course.advance(10)
        assert course.kinds == [BACK, LOCAL, DIRECT]

    def test_one_that_ends_itself(self) -> None:
        """What a way fails with as it is given up is in no log."""
        course = Course(LOCAL, DIRECT)
        taken = course.under_way[LOCAL]
        taken._canceller = lambda given_up: given_up.errback(NotMet("given up"))
        with the_log() as lines:
            course.race.done.cancel()
        assert isinstance(course.outcome.error, CancelledError)
        assert course.kinds == [LOCAL]
        assert lines == []

    def test_after_it_stands(self) -> None:
        """A call that stands is not given up so."""
        course = Course(LOCAL, DIRECT)
        course.stands(LOCAL)
        course.race.done.cancel()
        assert course.outcome.value is course.protocol
        assert course.ended == [f"{LOCAL} opens"]
