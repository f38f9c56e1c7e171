"""Cookies: proof that who sends from a source reads there too, with nothing kept of it (I14)."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Callable
from typing import Final

from broker.tables.grants import Randomness
from broker.tables.nat_bindings import Source

#: Seconds for which a cookie is good, at the least; at the most it is twice as long.
COOKIE_SECONDS: Final = 60
#: Seconds after which cookies are made with another secret.
SECRET_SECONDS: Final = 3600
_BYTES: Final = 16


class Cookies:
    """Makes cookies and knows them again."""

    def __init__(self, now: Callable[[], float], randomness: Randomness) -> None:
        """
        :param now: the time in seconds
        """
        self._now = now
        self._randomness = randomness
        self._secrets: dict[int, bytes] = {}

    def make(self, source: Source, name: str) -> str:
        """The cookie for a source and a name, at this time."""
        return self._cookie(source, name, int(self._now() // COOKIE_SECONDS))

    def good(self, cookie: str, source: Source, name: str) -> bool:
        """Whether a cookie is one that was made for this source and this name not long ago."""
        minute = int(self._now() // COOKIE_SECONDS)
        return any(
            hmac.compare_digest(self._cookie(source, name, when), cookie)
            for when in (minute, minute - 1)
        )

    def _cookie(self, source: Source, name: str, minute: int) -> str:
        secret = self._secret(minute * COOKIE_SECONDS // SECRET_SECONDS)
        text = f"{minute}\n{source[0]}\n{source[1]}\n{name}".encode()
        return urlsafe_b64encode(hmac.digest(secret, text, "sha256")[:_BYTES]).decode().rstrip("=")

    def _secret(self, hour: int) -> bytes:
        secret = self._secrets.get(hour)
        if secret is None:
            kept = {one: made for one, made in self._secrets.items() if one >= hour - 1}
            secret = kept[hour] = self._randomness(32)
            self._secrets = kept
        return secret
