"""Fresh credentials for each accepted query (A10)."""

from __future__ import annotations

import random
from collections import Counter
from math import log2

from broker.messages.grammar import FIELDS
from broker.tables.grants import PASSWORD_ALPHABET, PASSWORD_LENGTH, draw_credentials

MANY = 100_000


def test_never_again() -> None:
    """Of 100,000 grants no two share a session, a password or a key, within or across (A10)."""
    randomness = random.Random(1).randbytes
    seen: set[str] = set()
    letters: Counter[str] = Counter()
    for _ in range(MANY):
        grant = draw_credentials(randomness)
        seen.update((grant.session, grant.password, grant.reply_password, grant.key))
        letters.update(grant.password + grant.reply_password)
    assert len(seen) == 4 * MANY
    fair = MANY * 2 * PASSWORD_LENGTH / len(PASSWORD_ALPHABET)
    assert set(letters) == set(PASSWORD_ALPHABET.decode())
    # A remainder in place of a draw again would make some letters a third more likely.
    assert all(0.97 * fair < count < 1.03 * fair for count in letters.values())


def test_strength() -> None:
    """A password has at least 96 bits, of letters of both cases, digits and symbols (¶25)."""
    assert len(set(PASSWORD_ALPHABET)) == len(PASSWORD_ALPHABET)
    assert PASSWORD_LENGTH * log2(len(PASSWORD_ALPHABET)) >= 96
    text = PASSWORD_ALPHABET.decode()
    assert any(map(str.isupper, text))
    assert any(map(str.islower, text))
    assert any(map(str.isdigit, text))
    assert not all(map(str.isalnum, text))


def test_fits_the_wire() -> None:
    """Each part is taken by the rule of the field that carries it, and comes back the same."""
    grant = draw_credentials(random.Random(2).randbytes)
    for field, value in (
        ("Session", grant.session),
        ("Password", grant.password),
        ("Reply Password", grant.reply_password),
        ("Encrypt Key", grant.key),
    ):
        assert FIELDS[field](value) == value
    assert len(grant.password) == len(grant.reply_password) == PASSWORD_LENGTH


def test_parts_are_drawn_apart() -> None:
    """No byte is drawn for two uses: who knows the session knows nothing of the key (A10)."""
    drawn = bytes(range(108))
    grant = draw_credentials(lambda many: drawn[:many])
    assert grant.key == drawn[:32].hex()
    assert grant.session == "S" + drawn[32:44].hex()
    letters = bytes(PASSWORD_ALPHABET[n % 78] for n in range(44, 76)).decode()
    assert (grant.password, grant.reply_password) == (letters[:16], letters[16:])


def test_draws_again_where_too_little_is_fair() -> None:
    """Bytes that would favour a letter are thrown away, and more are drawn in their place."""
    source = iter([b"\xff" * 108, b"\xfe" * 64, b"\x00\xff" * 32])
    grant = draw_credentials(lambda _: next(source))
    assert grant.password == grant.reply_password == "A" * PASSWORD_LENGTH


def test_shown_nowhere() -> None:
    """Neither ``repr`` nor ``str`` of a grant tells a secret (I18)."""
    grant = draw_credentials(random.Random(5).randbytes)
    for shown in (repr(grant), str(grant), f"{grant}"):
        for secret in (grant.password, grant.reply_password, grant.key):
            assert secret not in shown
