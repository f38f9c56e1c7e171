"""The ledger of disclosures: each time that somebody was told where a terminal is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Disclosure:
    """One address that was told; never changed afterwards.

    :ivar whose: the terminal whose address it is
    :ivar told: who was told it
    :ivar host: the IP address
    :ivar port: the port that goes with it
    :ivar session: the session it was told for
    :ivar basis: what it rested on: the entry of the list that permitted it, such as ``Ia`` or
        ``@family``
    :ivar at: when, in microseconds since 1970 (UTC), by the wall clock
    :ivar expires: seconds after which the session ends
    """

    whose: str
    told: str
    host: str
    port: int
    session: str
    basis: str
    at: int
    expires: int
