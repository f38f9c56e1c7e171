"""Accounts: who may log in, how that is checked, and other names of theirs (A19, C1).

Identifiers and names share one namespace: what one account is called, no other can be. As with
permits, a change is first *prepared*, then committed by a store, then *applied*.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

#: How many other names one account may have.
NAMES_MOST: Final = 16
#: How many names may be claimed where nobody has to prove who it is (I15).
CLAIMS_MOST: Final = 10_000


class AccountRefused(ValueError):
    """What the operator asks for can't be; the text says why, and nothing has changed."""


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

    def __repr__(self) -> str:
        """Without the verifier, which says more of the password than a log should (I18)."""
        kept = "removed" if self.verifier is None else "…"
        return (
            f"AccountChange(identifier={self.identifier!r}, verifier={kept},"
            f" generation={self.generation!r}, names={self.names!r})"
        )


class AccountTable:
    """The accounts there are, and what each is called."""

    __slots__ = ("_accounts", "_claimed", "_claims", "_named")

    def __init__(self, accounts: Iterable[AccountChange] = ()) -> None:
        self._accounts: dict[str, AccountChange] = {}
        self._named: dict[str, str] = {}
        self._claimed: dict[str, list[str]] = {}  # by the identifier whose they are
        self._claims = 0
        for account in accounts:
            self.apply(account)

    def get(self, identifier: str) -> AccountChange | None:
        """The account of an identifier, as it was last applied."""
        return self._accounts.get(identifier)

    def canonical(self, name: str) -> str:
        """The identifier that a name stands for; any other text as it is."""
        return self._named.get(name, name)

    def names(self, identifier: str) -> tuple[str, ...]:
        """What else an identifier is called."""
        account = self._accounts.get(identifier)
        given = () if account is None else account.names
        return (*given, *self._claimed.get(identifier, ()))

    def __len__(self) -> int:
        return len(self._accounts)

    def __iter__(self) -> Iterator[AccountChange]:
        return iter(self._accounts.values())

    # What the operator may change.

    def add(self, identifier: str, verifier: str, generation: str) -> AccountChange:
        """Prepare a new account.

        :raises AccountRefused: there is one, or somebody is called so
        """
        self._check_free(identifier)
        return AccountChange(identifier, verifier, generation)

    def reset(self, identifier: str, verifier: str, generation: str) -> AccountChange:
        """Prepare another password for an account.

        :raises AccountRefused: there is no such account
        """
        return replace(self._known(identifier), verifier=verifier, generation=generation)

    def remove(self, identifier: str) -> AccountChange:
        """Prepare the end of an account, and of its names.

        :raises AccountRefused: there is no such account
        """
        self._known(identifier)
        return AccountChange(identifier, None)

    def add_name(self, identifier: str, name: str) -> AccountChange:
        """Prepare a further name for an account.

        :raises AccountRefused: somebody is called so, or the account has too many
        """
        account = self._known(identifier)
        self._check_free(name)
        if len(account.names) >= NAMES_MOST:
            raise AccountRefused(f"an account has at most {NAMES_MOST} names")
        return replace(account, names=(*account.names, name))

    def remove_name(self, identifier: str, name: str) -> AccountChange:
        """Prepare the end of one of an account's names.

        :raises AccountRefused: it is not called so
        """
        account = self._known(identifier)
        if name not in account.names:
            raise AccountRefused(f"{name} is no name of {identifier}")
        return replace(account, names=tuple(one for one in account.names if one != name))

    # What an identifier that has proven nothing may take, for as long as the process lives.

    def claim(self, identifier: str, name: str) -> None:
        """Call an identifier by a further name from now on.

        :raises AccountRefused: somebody is called so, or there are too many
        """
        self._check_free(name)
        if len(self.names(identifier)) >= NAMES_MOST:
            raise AccountRefused(f"an identifier has at most {NAMES_MOST} names")
        if self._claims >= CLAIMS_MOST:
            raise AccountRefused(f"at most {CLAIMS_MOST} names are claimed")
        self._claimed.setdefault(identifier, []).append(name)
        self._named[name] = identifier
        self._claims += 1

    def unclaim(self, identifier: str, name: str) -> None:
        """Take a claimed name back."""
        names = self._claimed[identifier]
        names.remove(name)
        if not names:
            del self._claimed[identifier]
        del self._named[name]
        self._claims -= 1

    def apply(self, change: AccountChange) -> None:
        """Put a prepared change in force."""
        before = self._accounts.pop(change.identifier, None)
        if before is not None:
            for name in before.names:
                del self._named[name]
        if change.verifier is None:
            return
        self._accounts[change.identifier] = change
        for name in change.names:
            self._named[name] = change.identifier

    def _known(self, identifier: str) -> AccountChange:
        account = self._accounts.get(identifier)
        if account is None:
            whose = self._named.get(identifier)
            more = "" if whose is None else f": that is a name of {whose}"
            raise AccountRefused(f"there is no account {identifier}{more}")
        return account

    def _check_free(self, name: str) -> None:
        if name in self._accounts:
            raise AccountRefused(f"there is an account {name} already")
        if name in self._named:
            raise AccountRefused(f"{name} is a name of {self._named[name]} already")
