"""Passwords, in threads that many may not crowd, and resume tokens (broker.mediator.auth)."""

from __future__ import annotations

import threading
from collections.abc import Awaitable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from broker.mediator.auth import passwords as module
from broker.mediator.auth import verifiers
from broker.mediator.auth.passwords import Passwords
from broker.mediator.auth.tokens import LIFE, Tokens
from broker.mediator.auth.verifiers import Cost, PasswordRefused
from broker.messages.errors import ServiceUnavailable, TooManyRequests
from tests.support.clock import FakePool, result_of
from tests.support.server import CHEAP, cheap_passwords


class Asked:
    """A step that is under way.

    :ivar outcome: what it gave or raised, once it is over
    """

    def __init__(self, step: Awaitable[Any]) -> None:
        self.outcome: list[Any] = []

        async def run() -> Any:
            return await step

        self.doing = Deferred.fromCoroutine(run())
        self.doing.addBoth(self._over)

    def _over(self, result: Any) -> None:
        self.outcome.append(result.type if isinstance(result, Failure) else result)


class Hashing:
    """Passwords with a pool that works when the test says so."""

    def __init__(self, **options: Any) -> None:
        self.pool = FakePool()
        self.passwords = cheap_passwords(pool=self.pool, **options)
        self.passwords.start()

    def ask(self, source: str = "s", password: str = "x") -> Asked:
        """Have one checked."""
        return Asked(self.passwords.check(password, None, source))


class VerifierTests:
    """What a password is made into."""

    @pytest.mark.parametrize(
        ("made", "given", "is_right"),
        [
            ("correct horse", "correct horse", True),
            ("correct horse", "correct horsf", False),
            ("correct horse", "", False),
            pytest.param("caf\u00e9", "cafe\u0301", True, id="composed or not"),
        ],
    )
    def test_when_a_password_is_made_then_it_alone_is_right(
        self, made: str, given: str, is_right: bool
    ) -> None:
        """Each verifier has a salt of its own; it goes on working when the cost is changed."""
        passwords = cheap_passwords()
        one, two = (result_of(passwords.make(made)) for _ in range(2))
        assert one != two
        assert made not in one
        newer = Passwords(lambda size: b"r" * size, cost=Cost(16, 2))
        for checks in (passwords, newer):
            assert result_of(checks.check(given, one, "s")) == is_right

    def test_when_no_cost_is_given_then_it_is_that_of_operators(self) -> None:
        """Argon2id, 19 MiB, two passes (I20)."""
        made = result_of(Passwords(lambda size: b"r" * size).make("x"))
        assert made.startswith("$argon2id$v=19$m=19456,t=2,p=1$")

    @pytest.mark.parametrize(
        "password", ["", "x" * 513, " x", "x\t", "x\n", "a\x00b", "\ud800"], ids=ascii
    )
    def test_when_a_password_can_not_be_sent_then_it_is_refused(self, password: str) -> None:
        """The words that say so do not contain it."""
        with pytest.raises(PasswordRefused) as raised:
            result_of(cheap_passwords().make(password))
        assert not password or password not in str(raised.value)

    @pytest.mark.parametrize(
        "verifier",
        [None, "", "x", "$argon2id$v=19$m=8,t=1,p=1$$", "$argon2i$v=19$m=8,t=1,p=1$YQ$YQ"],
    )
    def test_when_there_is_no_account_then_no_password_is_right(self, verifier: str | None) -> None:
        """None at all (I3)."""
        assert not result_of(cheap_passwords().check("x", verifier, "s"))

    def test_when_there_is_no_account_then_the_work_is_the_same(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One hash of the same cost and length (I6)."""
        passwords = cheap_passwords()
        made = result_of(passwords.make("secret"))
        seen: list[str] = []
        real = verifiers.matches

        def matches(octets: bytes, verifier: str) -> bool:
            seen.append(verifier)
            return real(octets, verifier)

        monkeypatch.setattr(module, "matches", matches)
        for verifier in (made, None):
            assert not result_of(passwords.check("wrong", verifier, "s"))
        known, dummy = (verifier.split("$") for verifier in seen)
        assert known[:4] == dummy[:4]
        assert [len(part) for part in known] == [len(part) for part in dummy]


class TurnsTests:
    """Who is served when not all can be (I15, I16)."""

    def test_when_all_threads_work_then_the_others_wait(self) -> None:
        hashing = Hashing(threads=2)
        asked = [hashing.ask() for _ in range(5)]
        assert len(hashing.pool.jobs) == 2
        assert hashing.passwords.waiting == 3
        hashing.pool.run()
        assert len(hashing.pool.jobs) == 2
        assert [one.outcome for one in asked] == [[False], [], [], [], []]

    def test_when_one_source_floods_then_another_waits_for_one_check(self) -> None:
        """And not for all of them."""
        hashing = Hashing()
        flood = [hashing.ask("flood") for _ in range(50)]
        owner = hashing.ask("owner")
        other = [hashing.ask("other") for _ in range(2)]
        for _ in range(4):
            hashing.pool.run()
        assert owner.outcome
        assert other[0].outcome
        assert sum(bool(one.outcome) for one in flood) == 2

    def test_when_no_more_may_wait_then_the_longest_queue_gives_up_its_newest(self) -> None:
        """For a source that has none waiting; where each has one, a newcomer is refused."""
        hashing = Hashing(waiting=5)
        flood = [hashing.ask("flood") for _ in range(6)]
        assert hashing.passwords.waiting == 5
        assert hashing.ask("flood").outcome == [TooManyRequests]
        owners = [hashing.ask(f"owner{n}") for n in range(4)]
        assert [one.outcome for one in flood] == [[]] * 2 + [[TooManyRequests]] * 4
        assert hashing.passwords.waiting == 5
        assert hashing.ask("late").outcome == [TooManyRequests]
        hashing.pool.run(6)
        assert [one.outcome for one in owners] == [[False]] * 4

    def test_when_a_check_is_given_up_then_it_is_not_begun(self) -> None:
        """One that runs disturbs nothing."""
        hashing = Hashing()
        running, waiting, last = hashing.ask(), hashing.ask(), hashing.ask()
        waiting.doing.cancel()
        running.doing.cancel()
        assert waiting.outcome == running.outcome == [CancelledError]
        assert hashing.passwords.waiting == 1
        hashing.pool.run(2)
        assert last.outcome == [False]
        assert hashing.pool.jobs == []

    def test_when_a_thread_has_a_bug_then_the_next_check_runs(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The one who asked is told (I24)."""
        hashing = Hashing()
        with monkeypatch.context() as patched:
            patched.setattr(module, "matches", lambda *_: 1 // 0)
            broken = hashing.ask()
        after = hashing.ask()
        hashing.pool.run(2)
        assert broken.outcome == [ZeroDivisionError]
        assert after.outcome == [False]

    def test_when_it_is_stopped_then_those_who_wait_are_told(self) -> None:
        """It begins nothing; what still ends does no harm."""
        hashing = Hashing()
        running, waiting = hashing.ask(), hashing.ask()
        hashing.passwords.stop()
        assert not hashing.pool.started
        assert waiting.outcome == [ServiceUnavailable]
        assert hashing.ask().outcome == [ServiceUnavailable]
        hashing.pool.run()
        assert running.outcome == [False]
        assert hashing.pool.jobs == []

    @pytest.mark.integration
    def test_when_there_are_threads_then_the_work_is_done_there(self) -> None:
        """Those of Twisted's pool, and not the one that asks."""
        calls: list[tuple[Any, ...]] = []
        came = threading.Semaphore(0)
        names: set[str] = set()

        class Reactor:
            def callFromThread(self, function: Any, *arguments: Any) -> None:
                names.add(threading.current_thread().name)
                calls.append((function, *arguments))
                came.release()

        pool = ThreadPool(minthreads=0, maxthreads=2, name="passwords")
        reactor: Any = Reactor()
        passwords = Passwords(
            lambda size: b"r" * size, pool=pool, reactor=reactor, threads=2, cost=CHEAP
        )
        passwords.start()
        try:
            made = result_of(cheap_passwords().make("secret"))
            asked = [Asked(passwords.check(word, made, "s")) for word in ("secret", "x") * 10]
            for _ in asked:
                assert came.acquire(timeout=30)
                function, *arguments = calls.pop(0)
                function(*arguments)
        finally:
            passwords.stop()
        assert [one.outcome for one in asked] == [[True], [False]] * 10
        assert threading.current_thread().name not in names
        assert pool.working == []


KEY = b"k" * 32


def tokens(key: bytes = KEY, epoch: str = "e1", now: float = 1000.0) -> Tokens:
    """What issues them."""
    return Tokens(key, epoch, lambda: now)


class TokensTests:
    """A token is valid for one account, one password, one epoch and a time, or not."""

    def test_when_a_token_was_issued_for_an_account_then_it_is_valid(self) -> None:
        """Also after a restart."""
        token = tokens().issue("山田太郎", "0" * 16)
        assert tokens().check(token, "山田太郎", "0" * 16)
        assert len(token) < 100
        assert tokens(now=1000 + LIFE - 1).check(token, "山田太郎", "0" * 16)

    @pytest.mark.parametrize(
        ("made", "shown", "identifier", "generation"),
        [
            ({}, {}, "Ib", "g1"),
            ({}, {}, "Ia", "g2"),
            ({}, {"epoch": "e2"}, "Ia", "g1"),
            ({}, {"now": 1000 + LIFE}, "Ia", "g1"),
            ({"key": b"x" * 32}, {}, "Ia", "g1"),
            ({}, {}, "", ""),
        ],
        ids=["another's", "reset", "another epoch", "expired", "another key", "no one's"],
    )
    def test_when_anything_it_rests_on_has_changed_then_it_is_void(
        self, made: dict[str, Any], shown: dict[str, Any], identifier: str, generation: str
    ) -> None:
        """Identifier, password, epoch and time (I2), and a key that is not in the store (I20)."""
        token = tokens(**made).issue("Ia", "g1")
        assert tokens(**made).check(token, "Ia", "g1")
        assert not tokens(**shown).check(token, identifier, generation)

    def test_when_a_token_is_tampered_with_then_it_is_void(self) -> None:
        """At any place, or by any length."""
        good = tokens().issue("Ia", "g1")
        for at in range(len(good)):
            for other in "0A-.é \n":
                if good[at] != other:
                    changed = good[:at] + other + good[at + 1 :]
                    assert not tokens().check(changed, "Ia", "g1"), changed
            assert not tokens().check(good[:at] + good[at + 1 :], "Ia", "g1")
            assert not tokens().check(good[:at] + "0" + good[at:], "Ia", "g1")

    @pytest.mark.parametrize("text", ["", ".", "x", "1" * 512, "٣.x", "-1.x", "1e9.x", "²."])
    def test_when_a_text_was_never_a_token_then_it_is_void(self, text: str) -> None:
        """And no error."""
        assert not tokens().check(text, "Ia", "g1")

    def test_when_its_parts_are_joined_otherwise_then_it_is_void(self) -> None:
        """No part can be taken for the end of another."""
        token = tokens(epoch="e").issue("Ia", "g1")
        assert not tokens(epoch="e").check(token, "I", "ag1")
        assert not tokens(epoch="eI").check(token, "a", "g1")

    def test_when_a_key_has_another_length_then_it_is_refused(self) -> None:
        """At once (I3)."""
        with pytest.raises(ValueError, match="a key has 32 bytes"):
            tokens(key=b"short")
