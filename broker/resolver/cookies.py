"""Cookies: proof that a sender also receives at its source, with no state kept here (I14).

A sender that spoofs its source never sees the cookie that was sent there.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from typing import Final

from twisted.internet.interfaces import IReactorTime

from broker.tables.grants import Randomness
from broker.tables.nat_bindings import Source

#: Seconds for which a cookie is valid: at least these, and less than twice as many.
COOKIE_SECONDS: Final = 60
#: Seconds after which cookies are made with a new secret.
SECRET_SECONDS: Final = 3600
_BYTES: Final = 16


class Cookies:
    """Makes cookies and recognizes them."""

    def __init__(self, clock: IReactorTime, randomness: Randomness) -> None:
        self._clock = clock
        self._randomness = randomness
        self._secrets: dict[int, bytes] = {}

    def make(self, source: Source, name: str) -> str:
        """The cookie for a source and a name, at this time."""
        return self._cookie(source, name, self._minute())

    def is_valid(self, cookie: str, source: Source, name: str) -> bool:
        """Whether a cookie was made for this source and this name, and has not expired."""
        minute = self._minute()
        return any(
            hmac.compare_digest(self._cookie(source, name, when), cookie)
            for when in (minute, minute - 1)
        )

    def _minute(self) -> int:
        return int(self._clock.seconds() // COOKIE_SECONDS)

    def _cookie(self, source: Source, name: str, minute: int) -> str:
        secret = self._secret(minute * COOKIE_SECONDS // SECRET_SECONDS)
        text = f"{minute}\n{source[0]}\n{source[1]}\n{name}".encode()
        return urlsafe_b64encode(hmac.digest(secret, text, "sha256")[:_BYTES]).decode().rstrip("=")

    def _secret(self, hour: int) -> bytes:
        secret = self._secrets.get(hour)
        if secret is None:
            # A cookie of the minute before may need the secret of the hour before.
            recent = {made: old for made, old in self._secrets.items() if made >= hour - 1}
            secret = recent[hour] = self._randomness(32)
            self._secrets = recent
        return secret
