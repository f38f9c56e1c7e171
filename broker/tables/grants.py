"""What an accepted query gives both sides: a session, passwords and a key, all fresh (A10)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

#: Gives so many random bytes; ``os.urandom`` in earnest, a seeded source in tests.
Randomness = Callable[[int], bytes]

PASSWORD_LENGTH: Final = 16
#: What a password is made of (¶25: upper and lower case, digits, symbols); 78 of them, so that 16
#: have 100 bits.
PASSWORD_ALPHABET: Final = (
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#$%&*+-./=?@^_~"
)
_FAIR: Final = 256 - 256 % len(PASSWORD_ALPHABET)
_LETTERS: Final = bytes(PASSWORD_ALPHABET[n % len(PASSWORD_ALPHABET)] for n in range(256))
_UNFAIR: Final = bytes(range(_FAIR, 256))  # dropped, so that every letter is equally likely


class SessionCredentials(NamedTuple):
    """The credentials of one call; never in a log, nor in its own ``repr`` (I18).

    :ivar session: its identifier
    :ivar password: what the caller shows the callee
    :ivar reply_password: what the callee shows the caller (A23)
    :ivar key: 64 hexadecimal digits
    """

    session: str
    password: str
    reply_password: str
    key: str

    def __repr__(self) -> str:
        return f"<Grant {self.session}>"


def make_grant(randomness: Randomness) -> SessionCredentials:
    """Draw fresh credentials."""
    drawn = randomness(108)
    letters = drawn[44:].translate(_LETTERS, _UNFAIR)
    while len(letters) < 2 * PASSWORD_LENGTH:
        letters += randomness(64).translate(_LETTERS, _UNFAIR)
    text = letters.decode("ascii")
    return SessionCredentials(
        session="S" + drawn[32:44].hex(),
        password=text[:PASSWORD_LENGTH],
        reply_password=text[PASSWORD_LENGTH : 2 * PASSWORD_LENGTH],
        key=drawn[:32].hex(),
    )
