"""Accounts: who may log in, how that is checked, and other names of theirs (A19, C1)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AccountChange:
    """An account as it is after a change, as data for a store.

    :ivar identifier: whose it is, in canonical form
    :ivar verifier: what a password is checked with, never the password (I20); ``None`` where the
        account is removed, whatever the rest says
    :ivar generation: 16 hexadecimal digits, drawn anew with each password; a resume token is good
        for one generation
    :ivar names: the names that the operator gave it, in order
    """

    identifier: str
    verifier: str | None
    generation: str = ""
    names: tuple[str, ...] = ()
