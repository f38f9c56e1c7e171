"""Password verifiers: Argon2id (RFC 9106), stored as PHC strings. Pure, and slow on purpose."""

from __future__ import annotations

import base64
import unicodedata
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from broker.messages.grammar import BLANKS
from broker.tables.grants import Randomness

#: Characters that a password has at most.
PASSWORD_MOST: Final = 512
SALT_BYTES: Final = 16
_HASH_BYTES: Final = 32


class Cost(NamedTuple):
    """What a check costs: Argon2id's parameters.

    :ivar memory: KiB
    :ivar passes: over that memory
    :ivar lanes: that can be worked on at once
    """

    memory: int = 19 * 1024
    passes: int = 2
    lanes: int = 1


class PasswordRefused(ValueError):
    """A text that can't be a password. The message says why, and does not contain it."""


def new_password_octets(password: str) -> bytes:
    """The octets of a new password that are hashed: in Unicode's form C.

    :raises PasswordRefused: it can't be one
    """
    if not 1 <= len(password) <= PASSWORD_MOST:
        raise PasswordRefused(f"a password has 1 to {PASSWORD_MOST} characters")
    if password[0] in BLANKS or password[-1] in BLANKS:
        raise PasswordRefused("a password begins or ends with a blank")
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in password):
        raise PasswordRefused("a password holds a control character")
    return unicodedata.normalize("NFC", password).encode("utf-8")


def given_password_octets(password: str) -> bytes:
    """The octets of a password that a terminal has sent. It may be any text."""
    return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")


def derive(octets: bytes, salt: bytes, cost: Cost) -> str:
    """Make a verifier."""
    return Argon2id(
        salt=salt,
        length=_HASH_BYTES,
        iterations=cost.passes,
        lanes=cost.lanes,
        memory_cost=cost.memory,
    ).derive_phc_encoded(octets)


def matches(octets: bytes, verifier: str) -> bool:
    """Whether a verifier was made of this password. It carries its own parameters."""
    try:
        Argon2id.verify_phc_encoded(octets, verifier)
    except (InvalidKey, ValueError):  # another password, or no valid verifier (I3)
        return False
    return True


def dummy_verifier(randomness: Randomness, cost: Cost) -> str:
    """A verifier of the usual cost that no password matches: a check takes the same time (I6)."""
    salt, drawn = (_base64(randomness(size)) for size in (SALT_BYTES, _HASH_BYTES))
    return f"$argon2id$v=19$m={cost.memory},t={cost.passes},p={cost.lanes}${salt}${drawn}"


def _base64(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii").rstrip("=")
