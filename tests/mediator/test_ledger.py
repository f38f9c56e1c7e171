"""The ledger of disclosures: when records are kept, who is told of them, when they go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from broker.interfaces import Change, StoreFailed
from broker.mediator.ledger import AT_ONCE, DELAY, RETRY_LONGEST, Ledger
from broker.mediator.ledger_pruning import DAYS, FIRST_PRUNING, PRUNING, LedgerPruner
from broker.mediator.ledger_query import PAGE_BYTES, PAGE_LINES
from broker.messages.errors import ServiceUnavailable
from broker.service.mediator import MediatorService, Options
from broker.tables.disclosures import Disclosure, format_line, format_time, parse_line
from broker.tables.locations import Contact
from tests.mediator.conftest import Logged
from tests.mediator.scene import (
    ACCEPTED,
    CAN,
    DENIED,
    DONE,
    STATUS,
    TODAY,
    TOO_MANY,
    UNAVAILABLE,
    Scene,
    SlowStore,
    bad,
    query,
    register,
    to_callee,
    to_caller,
    with_store,
)
from tests.service.scene import options_of
from tests.support.clock import result_of, settle
from tests.support.reactor import FakeReactor
from tests.support.server import cheap_passwords

WHERE: Final = Contact("203.0.113.5", 1203, 0.0, 3600)
NOTHING: Final = "NOTIFY\nNothing Disclosed.\n\n"
ASK: Final = "QUERY\nDISCLOSURES\n\n"


class Store(SlowStore):
    """A store whose commits of disclosures wait for the test, and whose pruning may fail.

    :ivar batches: how many changes each commit has, oldest first
    :ivar asked: whose disclosures were asked for
    :ivar pruned: each time before which it was to drop what it had
    """

    def __init__(self) -> None:
        super().__init__()
        self.slow_ledger = True
        self.pruned: list[int] = []
        self.error: Exception | None = None
        self.batches: list[int] = []
        self.asked: list[str] = []

    def commit(self, changes: Sequence[Change]) -> Deferred[None]:
        """Note how many there are, and wait."""
        self.batches.append(len(changes))
        return super().commit(changes)

    def done(self) -> None:
        """The oldest commit is on the disk."""
        self.pending.pop(0).callback(None)

    def fails(self, error: Exception | None = None) -> None:
        """The oldest commit is not."""
        self.pending.pop(0).errback(error or StoreFailed("the disk is full"))

    async def disclosures(self, whose: str, before: int, most: int) -> Sequence[Disclosure]:
        self.asked.append(whose)
        return await super().disclosures(whose, before, most)

    async def prune(self, before: int) -> int:
        self.pruned.append(before)
        if self.error is not None:
            raise self.error
        return 7


class Desk:
    """A ledger by itself."""

    def __init__(self, days: float = DAYS, **options: Any) -> None:
        self.clock = Clock()
        self.ahead = float(TODAY)
        self.store = Store()
        self.ledger = Ledger(self.store, self.clock, self.wall, **options)
        self.pruner = LedgerPruner(self.store, self.clock, self.wall, days)
        self.noted: list[Disclosure] = []

    @classmethod
    def writing(cls) -> Desk:
        """A ledger whose store is keeping one record."""
        desk = cls()
        desk.note()
        desk.clock.advance(DELAY)
        return desk

    def wall(self) -> float:
        """The time of day."""
        return self.ahead + self.clock.seconds()

    def note(self, count: int = 1) -> None:
        """A number of addresses are told."""
        for _ in range(count):
            self.ledger.check_room()
            told = self.ledger.record("Ib", "Ia", WHERE, f"S{len(self.noted)}", "Ia", 3600)
            self.noted.append(told)
            self.ledger.note(told)

    def full(self) -> bool:
        """Whether nothing more may be told."""
        try:
            self.ledger.check_room()
        except ServiceUnavailable:
            return True
        return False


def fired(deferred: Deferred[None]) -> bool:
    """Whether it is done."""
    return deferred.called


def notes(count: int = 1) -> Callable[[Desk], None]:
    """A number of addresses are told."""
    return lambda desk: desk.note(count)


def waits(seconds: float) -> Callable[[Desk], None]:
    """Time passes."""
    return lambda desk: desk.clock.advance(seconds)


def batches(*sizes: int) -> Callable[[Desk], None]:
    """The commits so far, by their sizes; at most one timer is set (I15)."""

    def step(desk: Desk) -> None:
        assert desk.store.batches == list(sizes)
        assert len(desk.clock.getDelayedCalls()) <= 1

    return step


def is_kept(desk: Desk) -> None:
    """The oldest commit is on the disk."""
    desk.store.done()


# fmt: off
PACE: Final[dict[str, list[Callable[[Desk], None]]]] = {
    "what is told within a quarter of a second is one commit": [
        notes(3), waits(DELAY / 2), notes(2), waits(DELAY / 2 - 0.01), batches(), waits(0.01),
        batches(5), is_kept,
    ],
    "a thousand are committed at once": [notes(AT_ONCE - 1), batches(), notes(), batches(AT_ONCE)],
    "what is due follows a commit at once": [
        notes(), waits(DELAY), notes(2), waits(DELAY), batches(1), notes(), is_kept, batches(1, 3),
        is_kept, waits(DELAY), batches(1, 3),
    ],
    "what is not due still waits for others": [
        notes(), waits(DELAY), notes(), is_kept, batches(1), waits(DELAY), batches(1, 1),
    ],
    "a thousand during a commit follow it at once": [
        notes(), waits(DELAY), notes(AT_ONCE + 5), batches(1), is_kept, batches(1, AT_ONCE + 5),
    ],
}
# fmt: on


class BehindTests:
    """Records that are written behind their addresses."""

    @pytest.mark.parametrize("case", PACE)
    def test_when_addresses_are_told_then_their_records_are_committed_together(
        self, case: str
    ) -> None:
        """Each once, in their order; no timer stays (I15)."""
        desk = Desk()
        for step in PACE[case]:
            step(desk)
        while desk.store.pending:
            desk.store.done()
        assert desk.store.told == desk.noted
        assert desk.clock.getDelayedCalls() == []

    def test_when_the_store_fails_then_it_is_tried_less_and_less_often(
        self, logged: Logged
    ) -> None:
        """Nothing is lost, and two lines of the log say so."""
        desk = Desk()
        desk.note(2)
        desk.clock.advance(DELAY)
        waits = []
        for _ in range(7):
            desk.store.fails()
            desk.note()
            (timer,) = desk.clock.getDelayedCalls()
            waits.append(timer.getTime() - desk.clock.seconds())
            desk.clock.advance(waits[-1] - 0.01)
            assert not desk.store.pending
            desk.clock.advance(0.02)
        assert waits == pytest.approx([1, 2, 4, 8, 16, RETRY_LONGEST, RETRY_LONGEST])
        desk.store.done()
        assert desk.store.told == desk.noted
        (begun,) = logged.failures()
        assert "can't be written" in begun
        assert "the disk is full" in begun
        assert [text for text in logged.texts() if "written again: 9 records" in text]
        desk.note()
        desk.clock.advance(DELAY)
        desk.store.fails()
        assert len(logged.failures()) == 1
        (timer,) = desk.clock.getDelayedCalls()
        assert timer.getTime() - desk.clock.seconds() == pytest.approx(1)

    @pytest.mark.parametrize("error", [StoreFailed("the disk is full"), ZeroDivisionError("odd")])
    def test_when_the_store_fails_then_a_thousand_more_do_not_hurry_it(
        self, error: Exception, logged: Logged
    ) -> None:
        """A bug of the store is as a full disk; the log has all of the error."""
        desk = Desk.writing()
        desk.store.fails(error)
        (failure,) = logged.failures()
        assert str(error) in failure
        assert ("ZeroDivisionError" in failure) == isinstance(error, ZeroDivisionError)
        desk.note(2 * AT_ONCE)
        assert desk.store.batches == [1]
        desk.clock.advance(1)
        desk.store.done()
        assert desk.store.batches == [1, 2 * AT_ONCE + 1]
        assert desk.store.told == desk.noted

    def test_when_too_many_wait_then_no_address_is_told(self, logged: Logged) -> None:
        """Those of the commit in progress are counted (I1)."""
        desk = Desk(waiting_most=5)
        desk.note(2)
        desk.clock.advance(DELAY)
        assert not desk.full()
        desk.note(3)
        assert desk.full()
        desk.store.fails()
        assert desk.full()
        desk.clock.advance(1)
        desk.store.done()
        assert not desk.full()
        logged.failures()


class TimeTests:
    """The times of records."""

    def test_when_two_are_of_one_moment_then_their_times_differ(self) -> None:
        """Pages part them."""
        desk = Desk()
        desk.note(4)
        start = TODAY * 1_000_000
        assert [one.at for one in desk.noted] == [start, start + 1, start + 2, start + 3]
        desk.clock.advance(1)
        desk.note()
        assert desk.noted[-1].at == start + 1_000_000

    def test_when_the_clock_is_put_back_then_its_time_is_recorded(self) -> None:
        """The time that it shows, a step included."""
        desk = Desk()
        desk.note()
        desk.ahead -= 3600
        desk.note(2)
        back = (TODAY - 3600) * 1_000_000
        assert [one.at for one in desk.noted[1:]] == [back, back + 1]


#: Where the ledger is stopped: records that are being committed (-1: one that has failed), and that
#: wait; the outcome of each commit from then on; and the size of each commit.
STOPS: Final[dict[str, tuple[int, int, list[bool], list[int]]]] = {
    "nothing waits": (0, 0, [], []),
    "what waits is committed at once": (0, 2, [True], [2]),
    "the commit in progress, and then the one after it": (1, 2, [True, True], [1, 2]),
    "it fails, and all is tried once more": (1, 2, [False, True], [1, 3]),
    "it fails, and is tried once more alone": (1, 0, [False, True], [1, 1]),
    "the last try fails": (0, 3, [False], [3]),
    "the store has failed, and the wait for the next try is cut short": (-1, 0, [True], [1, 1]),
}


class StopTests:
    """A clean stop loses nothing."""

    @pytest.mark.parametrize("case", STOPS)
    def test_when_it_is_stopped_then_all_is_handed_over(self, case: str, logged: Logged) -> None:
        """It is waited for; no timer stays, and nothing more is told. What is lost is counted."""
        writing, waiting, outcomes, batches = STOPS[case]
        desk = Desk.writing() if writing else Desk()
        if writing < 0:
            desk.store.fails()
            assert len(logged.failures()) == 1
        desk.note(waiting)
        stopped = desk.ledger.stop()
        assert desk.full()
        for is_kept in outcomes:
            assert not fired(stopped)
            if is_kept:
                desk.store.done()
            else:
                desk.store.fails()
        assert fired(stopped)
        assert desk.store.batches == batches
        assert desk.clock.getDelayedCalls() == []
        is_lost = bool(outcomes) and not outcomes[-1]
        assert desk.store.told == ([] if is_lost else desk.noted)
        failures = logged.failures()
        assert len(failures) == outcomes.count(False) + is_lost
        assert is_lost == any(f"{waiting} disclosures are lost" in text for text in failures)


class FirstTests:
    """Records that are committed before their addresses leave."""

    @pytest.mark.parametrize("is_kept", [True, False])
    def test_when_the_ledger_is_first_then_nothing_is_told_before_it_is_durable(
        self, is_kept: bool
    ) -> None:
        """Then both sides are told (A11); neither if the store fails (I1)."""
        scene, store = with_ledger(ledger_first=True)
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        scene.says("b", CAN)
        scene.passes(1)
        (commit,) = store.pending
        if not is_kept:
            scene.fires(commit, StoreFailed("the disk is full"), a=UNAVAILABLE)
            assert store.told == []
            return
        scene.fires(commit, b=to_callee("Ia"), a=ACCEPTED + to_caller("Ib"))
        (told,) = store.told
        assert (told.owner, told.recipient, told.host, told.port) == ("Ib", "Ia", "127.0.0.1", 1203)
        assert (told.session, told.basis) == (scene.drawn["session"], "Ia")


def with_ledger(**options: Any) -> tuple[Scene, Store]:
    """Ib, which accepts Ia, and Ia; from now on the store takes its time."""
    store = Store()
    store.at_once = True
    scene = Scene(store=store, **options)
    scene.on_line("b", "Accept:Create Ia")
    scene.new_says("a", register("Ia"), DONE)
    store.at_once = False
    return scene, store


def marked(answer: str, transaction: int, code: int) -> str:
    """The answer to a request that has a transaction."""
    return f"{answer[:-1]}Transaction:{transaction}\nCode:{code}\n\n"


def of(count: int, whose: str = "Ib", *, told: str = "Ia") -> list[Disclosure]:
    """A number of disclosures, the oldest first."""
    return [
        Disclosure(whose, told, "203.0.113.5", 1203, f"S{n}", "@family", 1_000_000 + n, 3600)
        for n in range(count)
    ]


def page(told: Sequence[Disclosure]) -> str:
    """The answer that tells these."""
    lines = "".join(f"Disclosed:{format_line(one)}\n" for one in told)
    return f"NOTIFY\n{lines}\n"


def before(at: int, *lines: str) -> str:
    """The question for what was told before."""
    return "\n".join(["QUERY", "DISCLOSURES", f"Before:{format_time(at)}", *lines, "", ""])


NO_TIME: Final = "Before: must be a time such as 2026-11-21T12:00:05.123456Z"
#: The disclosures of Ib's address, what it asks, and what it is answered.
# fmt: off
ANSWERS: Final[dict[str, tuple[list[Disclosure], str, str]]] = {
    "its own": (of(3), ASK, page(of(3)[::-1])),
    "none": ([], ASK, NOTHING),
    "none, with a transaction": (
        [], "QUERY\nDISCLOSURES\nTransaction:1\n\n", marked(NOTHING, 1, 200),
    ),
    "another's": (of(3), "QUERY\nDISCLOSURES\nIdentifier:Ia\n\n", DENIED),
    "a time that is none": (of(1), "QUERY\nDISCLOSURES\nBefore:yesterday\n\n", bad(NO_TIME)),
}
# fmt: on


class AnswerTests:
    """``QUERY`` / ``DISCLOSURES``."""

    def called(self) -> tuple[Scene, Store]:
        """Ia has called Ib, and the record waits for a store that takes its time."""
        scene, store = with_ledger()
        scene.calls("a", "b")
        return scene, store

    def asked_by(self, *told: Disclosure) -> tuple[Scene, SlowStore]:
        """A terminal Ib whose ledger holds these."""
        scene, store = with_store()
        store.told += told
        store.at_once = True
        scene.new_says("b", register("Ib"), DONE)
        return scene, store

    @pytest.mark.parametrize("case", ANSWERS)
    def test_when_a_terminal_asks_then_it_reads_its_own_records(self, case: str) -> None:
        """The newest first; those of no other, whatever it calls itself (I4)."""
        told, question, answer = ANSWERS[case]
        scene, _ = self.asked_by(*of(2, "Ia"), *told, *of(1, "Ic"))
        scene.says("b", question, b=answer)

    def test_when_it_is_the_first_message_then_it_logs_in_too(self) -> None:
        scene, store = with_store()
        store.told += of(1)
        scene.new_says("b", "QUERY\nDISCLOSURES\nIdentifier:Ib\n\n", page(of(1)))

    def test_when_a_call_was_just_granted_then_its_record_is_there(self) -> None:
        """What waits to be written is written first."""
        scene, store = self.called()
        scene.says("b", ASK)
        at, session = format_time(TODAY * 1_000_000), scene.drawn["session"]
        line = f"Ia;at={at};address=127.0.0.1;port=1203;session={session};by=Ia;expires=3600"
        scene.fires(store.pending.pop(), b=f"NOTIFY\nDisclosed:{line}\n\n")
        scene.says("a", ASK, a=NOTHING)

    def test_when_there_are_many_then_pages_hold_each_once(self) -> None:
        """None twice, and none is lost."""
        told = of(2 * PAGE_LINES + 1)[::-1]
        scene, _ = self.asked_by(*told[::-1])
        scene.says("b", ASK, b=page(told[:PAGE_LINES]))
        asked = before(told[PAGE_LINES - 1].at)
        scene.says("b", asked, b=page(told[PAGE_LINES : 2 * PAGE_LINES]))
        scene.says("b", before(told[-2].at), b=page(told[-1:]))
        scene.says("b", before(told[-1].at), b=NOTHING)

    def test_when_lines_are_long_then_a_page_has_fewer(self) -> None:
        """None is lost."""
        long: Any = {"host": "2001:db8::1", "session": "s" * 64, "basis": "@" + "x" * 127}
        told = [replace(one, **long) for one in of(PAGE_LINES, told="\U0001f4de" * 32)]
        scene, _ = self.asked_by(*told)
        found: list[Disclosure] = []
        question = ASK
        while len(found) < len(told):
            scene.clients["b"].type(question)
            text = scene.heard("b")
            assert PAGE_BYTES / 2 < len(text.encode()) <= PAGE_BYTES or found
            lines = [line for line in text.split("\n") if line.startswith("Disclosed:")]
            assert lines
            found += [parse_line("Ib", line.partition(":")[2]) for line in lines]
            question = before(found[-1].at)
        assert found == told[::-1]

    def test_when_several_have_one_time_then_no_page_ends_between_them(self) -> None:
        """A clock that was put back may make such times."""
        told = of(PAGE_LINES + 3)[::-1]
        for n in (-6, -5, -4, -3):  # the page would end between the two in the middle
            told[n] = replace(told[n], at=told[-4].at)
        scene, _ = self.asked_by(*told[::-1])
        scene.says("b", ASK, b=page(told[:-6]))
        scene.says("b", before(told[-7].at), b=page(told[-6:]))

    def test_when_a_second_question_comes_before_the_answer_then_it_is_refused(
        self, logged: Logged
    ) -> None:
        """One at a time (I16); later it may ask again."""
        scene, store = self.called()
        scene.says("b", "QUERY\nDISCLOSURES\nTransaction:1\n\n")
        scene.says("b", "QUERY\nDISCLOSURES\nTransaction:2\n\n", b=marked(TOO_MANY, 2, 429))
        scene.fires(store.pending.pop(), StoreFailed("full"), b=marked(UNAVAILABLE, 1, 503))
        assert len(logged.failures()) == 1

    def test_when_the_store_fails_then_nothing_is_told(self, logged: Logged) -> None:
        """Not all can be told then; afterwards it is."""
        scene, store = self.called()
        scene.says("b", ASK)
        scene.fires(store.pending.pop(), StoreFailed("full"), b=UNAVAILABLE)
        scene.says("b", ASK, b=UNAVAILABLE)
        assert len(logged.failures()) == 1
        scene.passes(1)
        store.done()
        scene.says("b", ASK, b=page(store.told))

    def test_when_the_store_cannot_read_then_that_is_said(self) -> None:

        class Unreadable(SlowStore):
            async def disclosures(self, whose: str, before: int, most: int) -> Sequence[Disclosure]:
                raise StoreFailed("busy")

        scene = Scene(store=Unreadable())
        scene.new_says("b", "QUERY\nDISCLOSURES\nIdentifier:Ib\n\n", UNAVAILABLE)

    def test_when_a_bare_request_is_open_then_the_question_waits(self) -> None:
        """Without reading; both answers come in order (I11)."""
        scene, store = with_ledger()
        scene.says("a", query("Ia", "Ib") + ASK, b=STATUS)
        assert store.asked == []
        scene.says("b", CAN, b=to_callee("Ia"), a=ACCEPTED + to_caller("Ib"))
        scene.fires(store.pending.pop(), a=NOTHING)
        assert store.asked == ["Ia"]

    def test_when_the_asker_leaves_then_nothing_is_left_behind(self, logged: Logged) -> None:
        """It may ask again."""
        scene, store = self.called()
        scene.says("b", ASK)
        scene.leaves("b")
        scene.new_says("b2", "QUERY\nDISCLOSURES\nIdentifier:Ib\n\n", "")
        store.done()
        settle(scene.clock)
        scene.reads(b2=page(store.told))
        assert len(store.told) == 1
        assert logged.failures() == []


class SettledTests:
    """Waiting until what was noted is kept."""

    def test_when_nothing_waits_then_settled_is_done_at_once(self) -> None:
        """Where a commit in progress has it all, as soon as that is done."""
        desk = Desk()
        result_of(desk.ledger.settled())
        assert desk.store.batches == []
        desk = Desk.writing()
        settled = Deferred.fromCoroutine(desk.ledger.settled())
        desk.note()
        assert not fired(settled)
        desk.store.done()
        assert fired(settled)
        assert desk.store.batches == [1]

    def test_when_more_comes_then_settled_does_not_wait_for_that(self) -> None:
        desk = Desk.writing()
        desk.note()
        settled = Deferred.fromCoroutine(desk.ledger.settled())
        desk.note()
        desk.store.done()
        assert not fired(settled)
        desk.store.done()
        assert fired(settled)
        desk.note()
        assert desk.store.batches == [1, 2]

    def test_when_one_waiter_gives_up_then_the_others_wait_on(self) -> None:
        desk = Desk()
        desk.note()
        one, other = (Deferred.fromCoroutine(desk.ledger.settled()) for _ in range(2))
        one.addErrback(lambda _: None)
        one.cancel()
        desk.store.done()
        assert fired(other)
        assert desk.store.told == desk.noted


class PruneTests:
    """What is too old is dropped."""

    def desk(self) -> Desk:
        """A ledger that has been started."""
        desk = Desk(days=2.0)
        desk.pruner.start()
        return desk

    def before(self, desk: Desk) -> int:
        """Two days ago."""
        return int((TODAY + desk.clock.seconds() - 2 * 86_400) * 1_000_000)

    def test_when_a_day_is_over_then_old_records_are_dropped(self, logged: Logged) -> None:
        """First after a minute; the log has the number."""
        desk = self.desk()
        desk.clock.advance(FIRST_PRUNING - 1)
        assert desk.store.pruned == []
        desk.clock.advance(1)
        assert desk.store.pruned == [self.before(desk)]
        desk.clock.advance(PRUNING)
        assert desk.store.pruned[1:] == [self.before(desk)]
        told = [text for text in logged.texts() if "7 disclosures older than 2 days" in text]
        assert len(told) == 2
        desk.pruner.stop()
        assert desk.clock.getDelayedCalls() == []

    def test_when_dropping_fails_then_it_is_tried_the_next_day(self, logged: Logged) -> None:
        """It is logged."""
        desk = self.desk()
        desk.store.error = StoreFailed("the disk is full")
        desk.clock.advance(FIRST_PRUNING)
        (failure,) = logged.failures()
        assert "can't be dropped" in failure
        assert "the disk is full" in failure
        desk.store.error = None
        desk.clock.advance(PRUNING)
        assert len(desk.store.pruned) == 2

    def test_when_the_clock_is_put_forward_then_no_young_record_is_dropped(self) -> None:
        """One that is put back drops less (I10)."""
        desk = self.desk()
        desk.ahead += 10 * 365 * 86_400
        desk.clock.advance(FIRST_PRUNING)
        assert desk.store.pruned == [self.before(desk)]
        desk.ahead = TODAY - 86_400.0
        desk.clock.advance(PRUNING)
        assert desk.store.pruned[1] == self.before(desk) - 86_400 * 1_000_000


class ServiceTests:
    """The ledger as the mediator's service runs it."""

    def test_when_the_service_runs_then_the_ledger_is_pruned_and_handed_over(self) -> None:
        """The store is stopped after it has taken what waited."""
        reactor, store = FakeReactor(), Store()
        stopped: list[int] = []

        async def stop() -> None:
            stopped.append(len(store.told))

        store.stop = stop  # type: ignore[method-assign]
        service = MediatorService(
            reactor,
            options_of(Options, "--auth=none"),
            store,
            owns_store=True,
            passwords=cheap_passwords(),
        )
        service.privilegedStartService()
        service.startService()
        assert service.mediator is not None
        ledger = service.mediator.context.disclosures
        reactor.advance(FIRST_PRUNING)
        assert len(store.pruned) == 1
        ledger.note(ledger.record("Ib", "Ia", WHERE, "S1", "Ia", 3600))
        stopping = service.stopService()
        assert stopped == []
        store.done()
        settle(reactor)
        assert stopped == [1]
        assert reactor.getDelayedCalls() == []
        assert stopping is not None
