"""What an accepted query gives both sides: a session, passwords and a key, all fresh (A10)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

#: Gives that many random bytes: ``os.urandom`` in production, a seeded source in tests.
Randomness = Callable[[int], bytes]

PASSWORD_LENGTH: Final = 16
#: What a password is made of (¶25: upper and lower case, digits, symbols): 78 characters, so that
#: 16 of them have 100 bits.
PASSWORD_ALPHABET: Final = (
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#$%&*+-./=?@^_~"
)
_FAIR: Final = 256 - 256 % len(PASSWORD_ALPHABET)
_LETTERS: Final = bytes(PASSWORD_ALPHABET[n % len(PASSWORD_ALPHABET)] for n in range(256))
#: Dropped: with them the first letters of the alphabet would be more likely than the others.
_UNFAIR: Final = bytes(range(_FAIR, 256))


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
        return f"<SessionCredentials {self.session}>"


def draw_credentials(randomness: Randomness) -> SessionCredentials:
    """Draw fresh credentials; no random byte is used for two of them."""
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
