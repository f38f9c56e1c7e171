"""The account table against accounts that are kept in the simplest way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.tables.accounts import NAMES_MOST, AccountChange, AccountRefused, AccountTable

WORDS = ["Ia", "Ib", "taro", "山田太郎", "+81-6-6908-1121"]
words = st.sampled_from(WORDS)
acts = st.one_of(
    st.tuples(st.just("add"), words),
    st.tuples(st.just("reset"), words),
    st.tuples(st.just("remove"), words),
    *(
        st.tuples(st.just(what), words, words)
        for what in ("add_name", "remove_name", "claim", "unclaim")
    ),
)


class Model:
    """Accounts as a list of all that anybody is called.

    :ivar accounts: identifier to names
    :ivar claimed: identifier to the names that it has claimed
    :ivar generations: identifier to the turn in which its password was set
    """

    def __init__(self) -> None:
        self.accounts: dict[str, list[str]] = {}
        self.claimed: dict[str, list[str]] = {}
        self.generations: dict[str, str] = {}

    def names(self, identifier: str) -> list[str]:
        """What an identifier is called."""
        return self.accounts.get(identifier, []) + self.claimed.get(identifier, [])

    def taken(self, word: str) -> bool:
        """Whether somebody is called so."""
        return word in self.accounts or any(word in self.names(one) for one in WORDS)

    def act(self, turn: str, what: str, identifier: str, name: str = "") -> bool:
        """Do it, if it can be."""
        if what in {"claim", "unclaim"}:
            names = self.claimed.setdefault(identifier, [])
        elif what == "add":
            if self.taken(identifier):
                return False
            names = self.accounts[identifier] = []
        elif identifier not in self.accounts:
            return False
        else:
            names = self.accounts[identifier]
        if what in {"add", "reset"}:
            self.generations[identifier] = turn
        elif what == "remove":
            del self.accounts[identifier], self.generations[identifier]
        elif what in {"add_name", "claim"}:
            if self.taken(name):
                return False
            names.append(name)
        else:
            if name not in names:
                return False
            names.remove(name)
        return True


def prepare(table: AccountTable, turn: str, what: str, *words: str) -> AccountChange:
    """The change that an act makes."""
    more = ("verifier", turn) if what in {"add", "reset"} else ()
    change: AccountChange = getattr(table, what)(*words, *more)
    return change


def look(table: AccountTable) -> tuple[object, ...]:
    """All that a table says."""
    return [*table], [(table.canonical(one), table.get(one), table.names(one)) for one in WORDS]


class AccountsTests:
    """Who has an account, and what each is called (A19, C1)."""

    @given(st.lists(acts, max_size=25))
    def test_against_the_model(self, deeds: list[tuple[str, ...]]) -> None:
        """Every act is taken or refused as the model says, and leaves what the model has.

        Preparing changes nothing, refused or not; a table made of what was applied is the same, but
        for what was claimed. That stands for whoever has claimed it until it is taken back, stays
        through changes of the account, and is no name that an account may be given, or made under.
        """
        table, model = AccountTable(), Model()
        applied = []
        for turn, deed in enumerate(deeds):
            what, identifier, *name = deed
            if what == "unclaim" and name[0] not in model.claimed.get(identifier, []):
                continue
            before = look(table)
            try:
                if what in {"claim", "unclaim"}:
                    getattr(table, what)(identifier, *name)
                    change = None
                else:
                    change = prepare(table, str(turn), *deed)
                    assert look(table) == before
            except AccountRefused:
                assert not model.act(str(turn), *deed)
                assert look(table) == before
                continue
            assert model.act(str(turn), *deed)
            if change is not None:
                table.apply(change)
                applied.append(change)
            self.same(table, model)
        model.claimed.clear()
        self.same(AccountTable(applied), model)

    def same(self, table: AccountTable, model: Model) -> None:
        """The table says what the model has."""
        assert len(table) == len(model.accounts)
        assert {one.identifier: list(one.names) for one in table} == model.accounts
        for word in WORDS:
            account = table.get(word)
            assert (account and account.generation) == model.generations.get(word)
            owners = [one for one in WORDS if word in model.names(one)]
            assert table.canonical(word) == (owners[0] if owners else word)
            assert list(table.names(word)) == model.names(word)

    def test_bound(self) -> None:
        """An account has no more names than it may, given and claimed together (I15)."""
        table = AccountTable([AccountChange("Ia", "v", "g", tuple(map(str, range(NAMES_MOST))))])
        for more in (table.add_name, table.claim):
            with pytest.raises(AccountRefused, match="at most 16 names"):
                more("Ia", "one more")
        table.apply(table.remove_name("Ia", "0"))
        table.apply(table.add_name("Ia", "one more"))
        assert table.canonical("one more") == "Ia"

    def test_words(self) -> None:
        """A refusal says in whose way it is."""
        table = AccountTable([AccountChange("Ia", "v", "g", ("taro",)), AccountChange("Ib", "v")])
        cases: list[tuple[Callable[[], object], str]] = [
            (lambda: table.add("Ia", "", ""), "there is already an account Ia"),
            (lambda: table.add("taro", "", ""), "taro is already a name of Ia"),
            (lambda: table.add_name("Ib", "taro"), "taro is already a name of Ia"),
            (lambda: table.add_name("Ib", "Ib"), "there is already an account Ib"),
            (lambda: table.remove("taro"), "there is no account taro: that is a name of Ia"),
            (lambda: table.remove_name("Ib", "taro"), "taro is not a name of Ib"),
        ]
        for act, why in cases:
            with pytest.raises(AccountRefused, match=f"^{why}$"):
                act()

    def test_no_verifier_in_a_repr(self) -> None:
        """What stands in a log or a traceback holds no verifier (I18)."""
        assert "$argon2id$" not in repr(AccountChange("Ia", "$argon2id$v=19$…", "0" * 16))
        assert "removed" in repr(AccountChange("Ia", None))
