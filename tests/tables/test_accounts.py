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
    st.tuples(st.just("add_name"), words, words),
    st.tuples(st.just("remove_name"), words, words),
)


class Model:
    """Accounts as a list of all that anybody is called.

    :ivar accounts: identifier to names
    :ivar generations: identifier to the turn in which its password was set
    """

    def __init__(self) -> None:
        self.accounts: dict[str, list[str]] = {}
        self.generations: dict[str, str] = {}

    def taken(self, word: str) -> bool:
        """Whether somebody is called so."""
        return any(word == one or word in names for one, names in self.accounts.items())

    def act(self, turn: str, what: str, identifier: str, name: str = "") -> bool:
        """Do it, if it can be."""
        known = identifier in self.accounts
        if what == "add":
            if self.taken(identifier):
                return False
            self.accounts[identifier] = []
            self.generations[identifier] = turn
        elif not known:
            return False
        elif what == "reset":
            self.generations[identifier] = turn
        elif what == "remove":
            del self.accounts[identifier], self.generations[identifier]
        elif what == "add_name":
            if self.taken(name):
                return False
            self.accounts[identifier].append(name)
        else:
            if name not in self.accounts[identifier]:
                return False
            self.accounts[identifier].remove(name)
        return True


def prepare(table: AccountTable, turn: str, what: str, *words: str) -> AccountChange:
    """The change that an act makes."""
    more = ("verifier", turn) if what in {"add", "reset"} else ()
    change: AccountChange = getattr(table, what)(*words, *more)
    return change


def look(table: AccountTable) -> tuple[object, ...]:
    """All that a table says."""
    return [*table], [table.canonical(word) for word in WORDS], [table.get(word) for word in WORDS]


class AccountsTests:
    """Who has an account, and what each is called (A19, C1)."""

    @given(st.lists(acts, max_size=25))
    def test_against_the_model(self, deeds: list[tuple[str, ...]]) -> None:
        """Every act is taken or refused as the model says, and leaves what the model has.

        Preparing changes nothing, refused or not; a table made of what was applied is the same.
        """
        table, model = AccountTable(), Model()
        applied = []
        for turn, deed in enumerate(deeds):
            before = look(table)
            try:
                change = prepare(table, str(turn), *deed)
            except AccountRefused:
                assert not model.act(str(turn), *deed)
                assert look(table) == before
                continue
            assert look(table) == before
            assert model.act(str(turn), *deed)
            table.apply(change)
            applied.append(change)
            self.same(table, model)
        self.same(AccountTable(applied), model)

    def same(self, table: AccountTable, model: Model) -> None:
        """The table says what the model has."""
        assert len(table) == len(model.accounts)
        assert {one.identifier: list(one.names) for one in table} == model.accounts
        for word in WORDS:
            account = table.get(word)
            assert (account is not None) == (word in model.accounts)
            if account is not None:
                assert account.generation == model.generations[word]
            owners = [one for one, names in model.accounts.items() if word in names]
            assert table.canonical(word) == (owners[0] if owners else word)

    def test_bound(self) -> None:
        """An account has no more names than it may (I15)."""
        table = AccountTable([AccountChange("Ia", "v", "g", tuple(map(str, range(NAMES_MOST))))])
        with pytest.raises(AccountRefused, match="at most 16 names"):
            table.add_name("Ia", "one more")
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


class ClaimTests:
    """Names that are claimed (C1)."""

    @pytest.fixture
    def table(self) -> AccountTable:
        """One account, which has a name."""
        return AccountTable([AccountChange("Ia", "verifier", "0" * 16, ("taro",))])

    def test_claimed(self, table: AccountTable) -> None:
        """It stands for whoever has claimed it, until that is taken back."""
        table.claim("Ib", "hanako")
        table.claim("Ia", "jiro")
        assert [table.canonical(name) for name in ("hanako", "jiro", "taro")] == ["Ib", "Ia", "Ia"]
        assert (table.names("Ia"), table.names("Ib")) == (("taro", "jiro"), ("hanako",))
        table.unclaim("Ib", "hanako")
        assert (table.canonical("hanako"), table.names("Ib")) == ("hanako", ())

    @pytest.mark.parametrize("name", ["Ia", "taro", "hanako"])
    def test_clash(self, table: AccountTable, name: str) -> None:
        """No account's identifier or name, and none that is claimed."""
        table.claim("Ib", "hanako")
        with pytest.raises(AccountRefused):
            table.claim("Ic", name)
        assert table.names("Ic") == ()

    def test_not_given_twice(self, table: AccountTable) -> None:
        """What is claimed is no name that an account could be given, or made under."""
        table.claim("Ib", "hanako")
        with pytest.raises(AccountRefused):
            table.add_name("Ia", "hanako")
        with pytest.raises(AccountRefused):
            table.add("hanako", "verifier", "0" * 16)

    def test_stays_with_an_account(self, table: AccountTable) -> None:
        """A change of an account leaves what was claimed for its identifier."""
        table.claim("Ia", "jiro")
        table.apply(AccountChange("Ia", "another", "1" * 16))
        assert table.names("Ia") == ("jiro",)
        assert table.canonical("taro") == "taro"

    def test_so_many(self, table: AccountTable) -> None:
        """So many for one identifier, given ones included (I15)."""
        for n in range(NAMES_MOST - 1):
            table.claim("Ia", f"n{n}")
        with pytest.raises(AccountRefused, match="16"):
            table.claim("Ia", "more")
