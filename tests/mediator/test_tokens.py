"""Resume tokens: good for one account, one password, one epoch and a while."""

from __future__ import annotations

from typing import Any

import pytest

from broker.mediator.auth.tokens import LIFE, Tokens

KEY = b"k" * 32


def tokens(key: bytes = KEY, epoch: str = "e1", now: float = 1000.0) -> Tokens:
    """What issues them."""
    return Tokens(key, epoch, lambda: now)


class TokensTests:
    """A token is good, or isn't."""

    def test_good(self) -> None:
        """It is good for the account that it was issued for, also after a restart."""
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
        ids=["another's", "reset", "another epoch", "expired", "another key", "nobody's"],
    )
    def test_void(
        self, made: dict[str, Any], shown: dict[str, Any], identifier: str, generation: str
    ) -> None:
        """It is bound to identifier, password, epoch and time, and to a key not in the store.

        I2, I20.
        """
        token = tokens(**made).issue("Ia", "g1")
        assert tokens(**made).check(token, "Ia", "g1")
        assert not tokens(**shown).check(token, identifier, generation)

    def test_tampered(self) -> None:
        """Changed at any place, or by any length, it is none."""
        good = tokens().issue("Ia", "g1")
        for at in range(len(good)):
            for other in "0A-.é \n":
                if good[at] != other:
                    changed = good[:at] + other + good[at + 1 :]
                    assert not tokens().check(changed, "Ia", "g1"), changed
            assert not tokens().check(good[:at] + good[at + 1 :], "Ia", "g1")
            assert not tokens().check(good[:at] + "0" + good[at:], "Ia", "g1")

    @pytest.mark.parametrize("text", ["", ".", "x", "1" * 512, "٣.x", "-1.x", "1e9.x", "²."])
    def test_nonsense(self, text: str) -> None:
        """What was never a token is none, and no error."""
        assert not tokens().check(text, "Ia", "g1")

    def test_parts_are_apart(self) -> None:
        """No part can be taken for the end of another."""
        token = tokens(epoch="e").issue("Ia", "g1")
        assert not tokens(epoch="e").check(token, "I", "ag1")
        assert not tokens(epoch="eI").check(token, "a", "g1")

    def test_key(self) -> None:
        """A key of another length is refused at once (I3)."""
        with pytest.raises(ValueError, match="a key has 32 bytes"):
            tokens(key=b"short")
