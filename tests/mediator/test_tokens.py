"""Resume tokens: valid for one account, one password, one epoch and a time."""

from __future__ import annotations

from typing import Any

import pytest

from broker.mediator.auth.tokens import LIFE, Tokens

KEY = b"k" * 32


def tokens(key: bytes = KEY, epoch: str = "e1", now: float = 1000.0) -> Tokens:
    """What issues them."""
    return Tokens(key, epoch, lambda: now)


class TokensTests:
    """A token is valid, or not."""

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
