"""Groups of terminals, which an entry of a list may name (A18)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GroupChange:
    """A group as it is after a change, as data for a store.

    :ivar name: its name, ``@`` included
    :ivar members: the identifiers in it, in order; ``None`` where the group is deleted, while an
        empty one stays
    """

    name: str
    members: tuple[str, ...] | None
