"""Cookies: proof that a sender reads at its source (broker.resolver.cookies)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import task

from broker.messages.grammar import token
from broker.resolver.cookies import COOKIE_SECONDS, SECRET_SECONDS, Cookies

HERE = ("192.0.2.1", 4000)


class Clock(task.Clock):
    """A time that is set, and cookies that go by it."""

    def __init__(self) -> None:
        super().__init__()
        self.cookies = Cookies(self, random.Random(1).randbytes)


class CookiesTests:
    """They are made and known again, and nothing is kept of them (I13, I14)."""

    @given(st.floats(0, 1e6), st.floats(0, COOKIE_SECONDS), st.floats(0, 1e6))
    def test_lasting(self, made: float, later: float, much_later: float) -> None:
        """Valid for a minute or more, wherever in the hour or minute it was made; never for longer
        than two.
        """
        clock = Clock()
        clock.rightNow = made
        cookie = clock.cookies.make(HERE, "K1")
        clock.rightNow = made + later
        assert clock.cookies.is_valid(cookie, HERE, "K1")
        clock.rightNow = made + 2 * COOKIE_SECONDS + much_later
        assert not clock.cookies.is_valid(cookie, HERE, "K1")

    @pytest.mark.parametrize(
        ("source", "name"),
        [(("192.0.2.2", 4000), "K1"), (("192.0.2.1", 4001), "K1"), (HERE, "K2")],
    )
    def test_of_another(self, source: tuple[str, int], name: str) -> None:
        """One is valid for its own source and key alone (I12)."""
        clock = Clock()
        cookie = clock.cookies.make(HERE, "K1")
        assert clock.cookies.is_valid(cookie, HERE, "K1")
        assert not clock.cookies.is_valid(cookie, source, name)
        # What it is made of can't be read in two ways.
        cookie = clock.cookies.make(("192.0.2.1", 40), "00K")
        assert not clock.cookies.is_valid(cookie, HERE, "K")

    @pytest.mark.parametrize("cookie", ["", "x", "A" * 22, "." * 64])
    def test_made_up(self, cookie: str) -> None:
        """None can be made up."""
        assert not Clock().cookies.is_valid(cookie, HERE, "K1")

    def test_form(self) -> None:
        """It may stand in a message, and is short. One of another process is none."""
        cookie = Clock().cookies.make(("2001:db8::1", 65535), "K" * 64)
        assert token(cookie) == cookie
        assert len(cookie) == 22
        one, other = Clock(), Cookies(task.Clock(), random.Random(2).randbytes)
        assert not other.is_valid(one.cookies.make(HERE, "K1"), HERE, "K1")

    def test_secrets(self) -> None:
        """The secret is another each hour, and old ones are forgotten, whatever is asked."""
        clock = Clock()
        drawn = []
        for hour in range(5):
            clock.rightNow = hour * SECRET_SECONDS + 1
            cookie = clock.cookies.make(HERE, "K1")
            for n in range(50):
                clock.cookies.is_valid(cookie, ("192.0.2.9", n), "K")
            drawn.append(clock.cookies._secret(hour))
            assert len(clock.cookies._secrets) <= 2
        assert len(set(drawn)) == 5
