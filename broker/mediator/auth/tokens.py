"""Resume tokens: a terminal that has logged in sends one the next time, in place of its password.

A token is checked by one HMAC, where a password costs a fiftieth of a second, and the server stores
none. The key of that HMAC is not in the database, so a copied database logs no one in (I20).
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64encode
from collections.abc import Callable
from typing import Final

#: Bytes of the key that tokens are made with.
KEY_BYTES: Final = 32
#: Seconds for which a token is valid.
LIFE: Final = 30 * 86400


class Tokens:
    """Issues and checks tokens. A new password, or another epoch, makes older ones void."""

    def __init__(
        self, key: bytes, epoch: str, wall: Callable[[], float], *, life: int = LIFE
    ) -> None:
        """
        :param key: ``KEY_BYTES`` of secret
        :param epoch: the store's: an older copy of a database may hold passwords that were changed
        :param wall: the time in seconds since 1970, which never goes back
        """
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes")
        self._key = key
        self._epoch = epoch
        self._wall = wall
        self._life = life

    def issue(self, identifier: str, generation: str) -> str:
        """A token for an account and its present password."""
        return self._make(identifier, generation, int(self._wall()) + self._life)

    def check(self, token: str, identifier: str, generation: str) -> bool:
        """Whether this very text was issued for such an account, and has not expired."""
        digits = token.partition(".")[0]
        plain = digits.isascii() and digits.isdecimal() and len(digits) <= 15
        expires = int(digits) if plain else 0
        expected = self._make(identifier, generation, expires)
        genuine = hmac.compare_digest(token.encode("utf-8"), expected.encode("ascii"))
        return genuine and self._wall() < expires

    def _make(self, identifier: str, generation: str, expires: int) -> str:
        # None of these can hold a NUL, so no two lists of them give the same text.
        text = "\0".join(("broker token 1", self._epoch, identifier, generation, str(expires)))
        mac = hmac.digest(self._key, text.encode("utf-8"), hashlib.sha256)
        return f"{expires}.{urlsafe_b64encode(mac).decode('ascii').rstrip('=')}"
