"""Access control: which callers each callee accepts now. Read only."""

from __future__ import annotations

from collections.abc import Callable, Collection

from broker.interfaces import State
from broker.tables.accounts import AccountTable
from broker.tables.groups import GroupTable
from broker.tables.permits import NEVER, NO_ENTRIES, PASSWORD, PermitTable, as_edits


class PermitRules:
    """The lists, groups and policies in force.

    :ivar table: the lists and policies
    :ivar groups: the groups
    :ivar canonical: gives the identifier that a name stands for; any other text unchanged
    :ivar now: gives the time in seconds since 1970, which no step of the system clock moves
    """

    def __init__(self, state: State, wall: Callable[[], float], accounts: AccountTable) -> None:
        """
        :param state: what the store held at the start
        :param accounts: knows the names of each identifier
        """
        self.table = PermitTable(state.permits)
        self.groups = GroupTable(state.groups)
        self.canonical = accounts.canonical
        self._accounts = accounts
        self.now = wall
        self._lists = self.table.lists  # bound here, since every call looks into it

    def permit_entry(self, callee: str, caller: str) -> str | None:
        """The entry of the callee's list that permits the caller; ``None`` where none does.

        None does where the callee has another policy than its list. The work is the same whether or
        not the callee exists (I6).
        """
        if self._is_overruled(callee, caller):
            return None
        if self._lists.get(callee, NO_ENTRIES).get(caller, NEVER) is None:
            return caller  # by name and without a limit, as most are: this is on every call's way
        return self.table.permit_entry(callee, caller, self.groups.of(caller), self.now())

    def authorizes(self, callee: str, caller: str, entry: str) -> bool:
        """Whether this very entry of the callee's list permits the caller."""
        if self._is_overruled(callee, caller):
            return False
        if entry != caller and entry not in self.groups.of(caller):
            return False
        return self.table.is_in_force(callee, entry, self.now())

    def requires_consent(self, callee: str) -> bool:
        """Whether the callee wants to be asked for its consent to each call (C3)."""
        return callee in self.table.ask_owners

    def accepts_call_password(self, callee: str) -> bool:
        """Whether the callee may be called by all who know its call password (D3)."""
        return self.table.policy(callee) == PASSWORD

    @property
    def has_consent_policies(self) -> bool:
        """Whether any callee wants to be asked for its consent."""
        return bool(self.table.ask_owners)

    def rejects(self, callee: str, caller: str) -> bool:
        """Whether the callee rejects the caller, whatever else permits it (C5)."""
        if callee not in self.table.rejected:
            return False
        return self.table.rejects(callee, self.names_of(caller))

    def names_of(self, caller: str) -> Collection[str]:
        """Every text that stands for a caller in a list: its identifier, names and groups."""
        return {caller, *self._accounts.names(caller), *self.groups.of(caller)}

    def is_counted(self, callee: str, caller: str) -> bool:
        """Whether what permits the caller permits a limited number of calls."""
        if callee not in self.table.counting_owners:
            return False
        entry = self.permit_entry(callee, caller)
        return entry is not None and self._has_uses(callee, entry)

    def accept_edits(self, owner: str) -> list[str]:
        """The list of accepted callers, as edits that make it, with what is left of its limits."""
        return as_edits(self.table.listing(owner, self.now()))

    def other_fields(self, owner: str) -> dict[str, str]:
        """The fields of rejected callers and of the policy, each only where it says something."""
        fields = {}
        rejected = self.table.rejected.get(owner)
        if rejected is not None:
            fields["Reject"] = "\n".join(as_edits(rejected))
        if owner in self.table.policies:
            fields["Policy"] = self.table.policy(owner)
        return fields

    def _is_overruled(self, callee: str, caller: str) -> bool:
        """Whether the callee's list is not in force, or the callee rejects the caller."""
        table = self.table
        if callee in table.policies:
            return True
        return callee in table.rejected and self.rejects(callee, caller)

    def _has_uses(self, callee: str, entry: str) -> bool:
        limit = self.table.limit(callee, entry)
        return limit is not None and limit.uses is not None
