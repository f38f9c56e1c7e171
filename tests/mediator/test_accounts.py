"""The operator's acts on accounts (broker.mediator.auth.accounts)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from broker.interfaces import StoreFailed
from broker.mediator.auth.accounts import Accounts
from broker.messages.errors import ServiceUnavailable
from broker.tables.accounts import AccountChange, AccountRefused
from broker.tables.permits import PermitChange
from tests.mediator.conftest import Logged
from tests.mediator.scene import (
    CAN,
    DENIED,
    DONE,
    NOT_FOUND,
    STATUS,
    Scene,
    SlowStore,
    begin,
    failed,
    permits,
    query,
    register,
    terminate,
    with_resolver,
    with_store,
)
from tests.support.clock import FakePool, begun, result_of
from tests.support.server import cheap_passwords

WRONG = failed("the identifier or the password is wrong")
PERMITS = "QUERY\nPERMITS\n\n"


def login(who: str, password: str, *lines: str) -> str:
    """A ``REGISTER`` with a password."""
    return register(who, f"Password:{password}", *lines)


def kept(*lists: PermitChange, **options: Any) -> tuple[Scene, SlowStore]:
    """A scene of Ia and Ib, with passwords, whose next commits are done when the test says so."""
    store = SlowStore(*lists)
    store.at_once = True
    scene = Scene(store=store, accounts={"Ia": "of Ia", "Ib": "of Ib"}, **options)
    store.at_once = False
    store.commits.clear()
    return scene, store


def two() -> Scene:
    """A scene of Ia and Ib."""
    return Scene(accounts={"Ia": "of Ia", "Ib": "of Ib"})


ACTS: dict[str, Callable[[Accounts], Awaitable[None]]] = {
    "add": lambda accounts: accounts.add("Ix", "of Ix"),
    "reset": lambda accounts: accounts.reset("Ia", "new"),
    "remove": lambda accounts: accounts.remove("Ia"),
    "add a name": lambda accounts: accounts.add_name("Ia", "taro"),
}


class DurableTests:
    """What the operator is told is done is durable, and in force (I8)."""

    @pytest.mark.parametrize("act", ACTS)
    def test_when_a_change_is_being_kept_then_it_is_not_in_force(self, act: str) -> None:
        """It is in force as soon as the operator is told; all of it is one commit (I9)."""
        scene, store = kept(PermitChange("Ib", ("Ia", "Ix")))
        table = scene.mediator.accounts.table
        before = [*table]
        doing = begun(ACTS[act](scene.mediator.accounts))
        assert (doing, [*table]) == ([], before)
        (pending,) = store.pending
        scene.fires(pending)
        assert doing == [None]
        assert [*table] != before
        (commit,) = store.commits
        (change,) = [one for one in commit if isinstance(one, AccountChange)]
        assert table.get(change.identifier) == (None if change.verifier is None else change)
        assert (PermitChange("Ib", ("Ix",)) in commit) == (act == "remove")

    @pytest.mark.parametrize("act", ACTS)
    def test_when_the_store_fails_then_nothing_has_changed(self, act: str) -> None:
        """No table, no connection, no list, no token (I9)."""
        scene, store = kept(PermitChange("Ib", ("Ia",)), PermitChange("Ia", ("Ib",)))
        scene.new_says("a", login("Ia", "of Ia", "Address:127.0.0.1"), DONE)
        before = [*scene.mediator.accounts.table]
        doing = begun(ACTS[act](scene.mediator.accounts))
        scene.fires(store.pending.pop(), StoreFailed("the disk is full"))
        assert doing[0].check(StoreFailed)
        assert [*scene.mediator.accounts.table] == before
        assert not scene.clients["a"].ended
        assert scene.address("Ia") == ("127.0.0.1", 1203)
        scene.says("a", PERMITS, a=permits("Create Ib"))
        scene.new_says("a2", login("Ia", "of Ia"), DONE)

    def test_when_two_changes_come_at_once_then_neither_undoes_the_other(self) -> None:
        """The second is worked out from what the first has made."""
        scene, store = kept()
        accounts = scene.mediator.accounts
        named, renamed = (
            begun(accounts.add_name("Ia", "taro")),
            begun(accounts.add_name("Ib", "taro")),
        )
        reset = begun(accounts.reset("Ia", "new"))
        scene.fires(store.pending.pop())
        assert named == [None]
        assert renamed[0].check(AccountRefused)
        scene.fires(store.pending.pop())
        assert reset == [None]
        account = accounts.table.get("Ia")
        assert account is not None
        assert account.names == ("taro",)

    def test_when_the_mediator_restarts_then_accounts_are_as_kept(self) -> None:
        first = Scene(accounts={"Ia": "of Ia"})
        result_of(first.mediator.accounts.add_name("Ia", "taro"))
        again = Scene(store=first.broker.store, accounts={})
        again.new_says("a", login("taro", "of Ia"), DONE)


class RefusedTests:
    """What can't be is refused with words for the operator, and changes nothing."""

    @pytest.mark.parametrize(
        ("act", "why"),
        [
            (lambda a: a.add("Ia", "x"), "there is already an account Ia"),
            (lambda a: a.add("taro", "x"), "taro is already a name of Ia"),
            (lambda a: a.add("@group", "x"), "an identifier begins with @"),
            (lambda a: a.add("a,b", "x"), "an identifier holds a comma or a semicolon"),
            (lambda a: a.add("Ix", ""), "a password has 1 to 512 characters"),
            (lambda a: a.add("Ix", "x "), "a password begins or ends with a blank"),
            (lambda a: a.reset("Ix", "x"), "there is no account Ix"),
            (lambda a: a.reset("taro", "x"), "there is no account taro: that is a name of Ia"),
            (lambda a: a.reset("Ia", "x\n"), "a password holds a control character"),
            (lambda a: a.remove("Ix"), "there is no account Ix"),
            (lambda a: a.add_name("Ix", "x"), "there is no account Ix"),
            (lambda a: a.add_name("Ia", "Ib"), "there is already an account Ib"),
            (lambda a: a.add_name("Ib", "taro"), "taro is already a name of Ia"),
            (lambda a: a.add_name("Ib", "@x"), "an identifier begins with @"),
            (lambda a: a.remove_name("Ib", "taro"), "taro is not a name of Ib"),
        ],
    )
    def test_when_a_change_is_refused_then_nothing_is_committed(
        self, act: Callable[[Accounts], Awaitable[None]], why: str
    ) -> None:
        """The operator is told why."""
        scene, store = kept()
        store.at_once = True
        result_of(scene.mediator.accounts.add_name("Ia", "taro"))
        store.commits.clear()
        with pytest.raises(AccountRefused, match=f"^{why}$"):
            result_of(act(scene.mediator.accounts))
        assert store.commits == []

    def test_when_a_password_is_being_hashed_then_the_change_is_worked_out_afterwards(self) -> None:
        """From what there is then; refused if too many wait. What is refused costs no hash."""
        pool = FakePool()
        passwords = cheap_passwords(pool=pool, waiting=1)
        scene = Scene(passwords=passwords)
        accounts = scene.mediator.accounts
        assert begun(accounts.reset("Ix", "x"))[0].check(AccountRefused)
        assert pool.jobs == []
        first, second = (begun(accounts.add("Ia", "x")) for _ in range(2))
        pool.run()
        assert first == [None]
        assert second[0].check(AccountRefused)
        for source in "st":
            begun(passwords.check("x", None, source))
        assert begun(accounts.add("Ix", "x"))[0].check(AccountRefused)
        pool.run(2)


class ResetTests:
    """Another password."""

    def test_when_a_password_is_reset_then_only_the_new_one_logs_in(self) -> None:
        """Connections are closed (I2)."""
        scene = two()
        scene.new_says("a", login("Ia", "of Ia", "Accept:Create Ib"), DONE)
        scene.new_says("a2", login("Ia", "of Ia"), DONE)
        scene.new_says("b", login("Ib", "of Ib"), DONE)
        result_of(scene.mediator.accounts.reset("Ia", "new"))
        for name in ("a", "a2"):
            assert scene.clients[name].ended
            scene.clients[name].type(register("Ia", "Accept:Create Ix"))
        scene.says("b", PERMITS, b=permits("Create"))
        scene.new_says("a3", login("Ia", "of Ia"), WRONG)
        scene.says("a3", login("Ia", "new") + PERMITS, a3=DONE + permits("Create Ib"))

    def test_when_a_password_is_reset_then_sessions_are_void(self) -> None:
        """Those granted to the account, and to others for it, on both sides (I2)."""
        scene = two()
        where = "Address:127.0.0.1"
        scene.new_says("a", login("Ia", "of Ia", where, "Accept:Create Ib"), DONE)
        scene.new_says("b", login("Ib", "of Ib", where, "Accept:Create Ia"), DONE)
        session = scene.calls("a", "b")
        scene.says("b", begin(session))
        result_of(scene.mediator.accounts.reset("Ia", "new"))
        scene.reads(b=terminate(), a=terminate())
        assert len(scene.context.sessions) == 0

    def test_when_a_password_is_made_then_it_has_a_generation(self) -> None:
        """One of its own, of 16 hexadecimal digits."""
        scene = Scene(accounts={"Ia": "x"})
        seen = set()
        for _ in range(5):
            account = scene.mediator.accounts.table.get("Ia")
            assert account is not None
            assert len(bytes.fromhex(account.generation)) == 8
            seen.add(account.generation)
            result_of(scene.mediator.accounts.reset("Ia", "x"))
        assert len(seen) == 5

    def test_when_an_account_changes_then_the_log_has_one_line(self, logged: Logged) -> None:
        """Whatever the identifier holds (I19)."""
        scene = Scene(accounts={})
        accounts = scene.mediator.accounts
        strange = "I\u3000{x}é"
        for act, said in (
            (accounts.add(strange, "x"), "is added"),
            (accounts.reset(strange, "y"), "has a new password"),
            (accounts.add_name(strange, "n"), "has another name"),
            (accounts.remove_name(strange, "n"), "has one name less"),
            (accounts.remove(strange), "is removed"),
        ):
            before = len(logged.events)
            result_of(act)
            told = [text.partition("] ")[2] for text in logged.texts()[before:]]
            accounted = [text for text in told if text.startswith("Account")]
            assert accounted == [f"Account {strange} {said}"]


class RemoveTests:
    """The end of an account."""

    def test_when_an_account_is_removed_then_nothing_of_it_is_left(self) -> None:
        """Connections, address, names, lists both ways: nothing for a successor (I2)."""
        scene = two()
        accounts = scene.mediator.accounts
        result_of(accounts.add_name("Ib", "taro"))
        scene.new_says("b", login("Ib", "of Ib", "Address:127.0.0.1", "Accept:Create Ia"), DONE)
        scene.new_says("a", login("Ia", "of Ia", "Accept:Create taro"), DONE)
        result_of(accounts.remove("Ib"))
        assert scene.clients["b"].ended
        assert scene.address("Ib") is None
        scene.says("a", PERMITS, a=permits("Create"))
        scene.says("a", query("Ia", "Ib") + query("Ia", "taro"), a=DENIED * 2)
        scene.new_says("x", login("Ib", "of Ib"), WRONG)
        result_of(accounts.add("Ib", "another"))
        scene.says("x", login("Ib", "another") + PERMITS, x=DONE + permits("Create"))
        scene.says("x", query("Ib", "Ia"), x=DENIED)
        scene.says("a", query("Ia", "Ib"), a=DENIED)

    def test_when_a_caller_is_removed_then_its_calls_end(self) -> None:
        """A session (I2), and a call that waits for the callee, which tells nothing (I1)."""
        scene = two()
        scene.new_says("b", login("Ib", "of Ib", "Address:127.0.0.1", "Accept:Create Ia"), DONE)
        scene.new_says("a", login("Ia", "of Ia"), DONE)
        scene.calls("a", "b")
        scene.says("a", query("Ia", "Ib"), b=STATUS)
        result_of(scene.mediator.accounts.remove("Ia"))
        scene.reads(b=terminate(), a=terminate())
        scene.says("b", CAN)
        assert scene.clients["a"].ended

    def test_when_an_edit_waits_then_it_brings_nothing_back(self) -> None:
        """An edit of the list of the account that is removed (I2)."""
        scene, store = kept()
        scene.new_says("a", login("Ia", "of Ia"), DONE)
        scene.says("a", register("Ia", "Accept:Create Ib", "Transaction:1"))
        scene.says("a", register("Ia", "Accept:Add Ix", "Address:127.0.0.1", "Transaction:2"))
        doing = begun(scene.mediator.accounts.remove("Ia"))
        scene.says("a", register("Ia", "Accept:Add Iy", "Transaction:3"))
        store.at_once = True
        while store.pending:
            store.pending.pop(0).callback(None)
        told = scene.heard("a")
        assert told.count("Registration Completed.") == 2  # those that came before
        assert doing == [None]
        assert scene.context.permits.table.accepted("Ia") == ()
        assert scene.address("Ia") is None
        assert scene.mediator.accounts.table.get("Ia") is None
        assert scene.clients["a"].ended

    def test_when_the_resolver_is_away_then_the_account_is_removed_even_so(
        self, logged: Logged
    ) -> None:
        """Its address can't be withdrawn, and the log says so."""
        scene, resolver = with_resolver(accounts={"Ia": "of Ia"})
        scene.new_says("a", login("Ia", "of Ia", "Address:127.0.0.1"), DONE)
        resolver.errors["withdraw"] = ServiceUnavailable()
        result_of(scene.mediator.accounts.remove("Ia"))
        assert scene.mediator.accounts.table.get("Ia") is None
        assert any("not all that it registered" in text for text in logged.texts())


class NamesTests:
    """Other names (C1)."""

    def test_when_an_account_has_a_name_then_it_is_valid_everywhere(self) -> None:
        """As callee, as identifier and in lists, which keep the identifier."""
        scene = two()
        accounts = scene.mediator.accounts
        result_of(accounts.add_name("Ib", "花子"))
        result_of(accounts.add_name("Ia", "太郎"))
        scene.new_says("b", login("花子", "of Ib", "Accept:Create 太郎"), DONE)
        scene.says("b", PERMITS, b=permits("Create Ia"))
        scene.new_says("a", login("Ia", "of Ia"), DONE)
        scene.says("a", query("太郎", "花子"), a=NOT_FOUND)
        result_of(accounts.remove_name("Ib", "花子"))
        scene.says("a", query("Ia", "花子") + query("Ia", "Ib"), a=DENIED + NOT_FOUND)

    def test_when_no_identity_is_proven_then_names_are_valid_too(self) -> None:
        scene, store = with_store()
        store.at_once = True
        result_of(scene.mediator.accounts.add("Ia", "x"))
        result_of(scene.mediator.accounts.add_name("Ia", "taro"))
        scene.new_says("a", register("taro", "Accept:Create Ib"), DONE)
        scene.says("a", register("Ia") + register("taro"), a=DONE * 2)
        assert scene.context.permits.table.accepted("Ia") == ("Ib",)
