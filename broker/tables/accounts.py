"""Accounts: the identifiers that may log in, their password verifiers and aliases (A19, C1).

Identifiers and aliases share one namespace: two accounts never have a name in common. As with
permits, a change is first *prepared*, then committed to a store, then *applied*.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

#: How many aliases one account may have.
NAMES_MOST: Final = 16
#: How many aliases may be claimed where terminals do not log in (I15).
CLAIMS_MOST: Final = 10_000


class AccountRefused(ValueError):
    """A change of an account is refused; the text says why, and nothing has changed."""


@dataclass(frozen=True, slots=True)
class AccountChange:
    """An account after a change, as data for a store.

    :ivar identifier: in canonical form
    :ivar verifier: verifies a password, and is never the password (I20); ``None`` if the account
        is removed, whatever the other fields are
    :ivar generation: 16 hexadecimal digits, drawn with each new password; a resume token is valid
        for one generation
    :ivar names: the aliases that the operator gave it, in order
    """

    identifier: str
    verifier: str | None
    generation: str = ""
    names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Leave the verifier out, which tells more about the password than a log should (I18)."""
        verifier = "removed" if self.verifier is None else "…"
        return (
            f"AccountChange(identifier={self.identifier!r}, verifier={verifier},"
            f" generation={self.generation!r}, names={self.names!r})"
        )


class AccountTable:
    """All accounts, and the aliases of each identifier."""

    __slots__ = ("_accounts", "_claimed", "_claims", "_named")

    def __init__(self, accounts: Iterable[AccountChange] = ()) -> None:
        self._accounts: dict[str, AccountChange] = {}
        self._named: dict[str, str] = {}
        self._claimed: dict[str, list[str]] = {}  # By the identifier that claimed them.
        self._claims = 0
        for account in accounts:
            self.apply(account)

    def get(self, identifier: str) -> AccountChange | None:
        """Return the account of an identifier, ``None`` if there is none."""
        return self._accounts.get(identifier)

    def canonical(self, name: str) -> str:
        """Return the identifier that an alias stands for; any other text unchanged."""
        return self._named.get(name, name)

    def names(self, identifier: str) -> tuple[str, ...]:
        """Return the aliases of an identifier."""
        account = self._accounts.get(identifier)
        given = () if account is None else account.names
        return (*given, *self._claimed.get(identifier, ()))

    def __len__(self) -> int:
        return len(self._accounts)

    def __iter__(self) -> Iterator[AccountChange]:
        return iter(self._accounts.values())

    # Changes by the operator.

    def add(self, identifier: str, verifier: str, generation: str) -> AccountChange:
        """Prepare a new account.

        :raises AccountRefused: the name is in use
        """
        self._check_free(identifier)
        return AccountChange(identifier, verifier, generation)

    def reset(self, identifier: str, verifier: str, generation: str) -> AccountChange:
        """Prepare a new password for an account.

        :raises AccountRefused: there is no such account
        """
        return replace(self._known(identifier), verifier=verifier, generation=generation)

    def remove(self, identifier: str) -> AccountChange:
        """Prepare the removal of an account and its aliases.

        :raises AccountRefused: there is no such account
        """
        self._known(identifier)
        return AccountChange(identifier, None)

    def add_name(self, identifier: str, name: str) -> AccountChange:
        """Prepare a new alias for an account.

        :raises AccountRefused: the name is in use, or the account has too many
        """
        account = self._known(identifier)
        self._check_free(name)
        if len(account.names) >= NAMES_MOST:
            raise AccountRefused(f"an account has at most {NAMES_MOST} names")
        return replace(account, names=(*account.names, name))

    def remove_name(self, identifier: str, name: str) -> AccountChange:
        """Prepare the removal of an account's alias.

        :raises AccountRefused: it has no such alias
        """
        account = self._known(identifier)
        if name not in account.names:
            raise AccountRefused(f"{name} is not a name of {identifier}")
        return replace(account, names=tuple(each for each in account.names if each != name))

    # Aliases that terminals claim where they do not log in, until the process ends.

    def claim(self, identifier: str, name: str) -> None:
        """Give an identifier an alias from now on.

        :raises AccountRefused: the name is in use, or there are too many
        """
        self._check_free(name)
        if len(self.names(identifier)) >= NAMES_MOST:
            raise AccountRefused(f"an identifier has at most {NAMES_MOST} names")
        if self._claims >= CLAIMS_MOST:
            raise AccountRefused(f"at most {CLAIMS_MOST} names can be claimed")
        self._claimed.setdefault(identifier, []).append(name)
        self._named[name] = identifier
        self._claims += 1

    def unclaim(self, identifier: str, name: str) -> None:
        """Remove a claimed alias."""
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
            owner = self._named.get(identifier)
            more = "" if owner is None else f": that is a name of {owner}"
            raise AccountRefused(f"there is no account {identifier}{more}")
        return account

    def _check_free(self, name: str) -> None:
        if name in self._accounts:
            raise AccountRefused(f"there is already an account {name}")
        if name in self._named:
            raise AccountRefused(f"{name} is already a name of {self._named[name]}")
