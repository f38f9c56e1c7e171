"""Logging in: with a password, a token or a certificate, and what becomes of who can't (A19)."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from broker.mediator.auth import login as module
from broker.mediator.auth.login import CertificateLogin
from broker.net.connection import PeerConnection
from broker.net.tls.certificates import CertificateRefused
from broker.tables.accounts import AccountChange, AccountTable
from broker.tables.permits import PermitChange
from tests.mediator.conftest import Logged
from tests.mediator.scene import (
    DENIED,
    DONE,
    STATUS,
    SUPERSEDED,
    Scene,
    failed,
    permits,
    query,
    register,
    with_store,
)
from tests.support.clock import FakePool, result_of
from tests.support.server import cheap_passwords

WRONG = failed("the identifier or the password is wrong")
STALE = failed("invalid or expired token: log in with the password")
ALREADY = failed("this connection has logged in already")
CLEAR = failed("no login in clear text from another machine")
PERMITS = "QUERY\nPERMITS\n\n"
#: Each account's password says whose it is.
ACCOUNTS = {"Ia": "of Ia", "Ib": "of Ib"}


def required(cause: str) -> str:
    """The answer to who has to log in first."""
    return f"NOTIFY\nLogin Required.\nCause:{cause}\n\n"


FIRST = required("log in first: REGISTER with an Identifier and a Password or Token")


def too_many(seconds: int) -> str:
    """The answer to who has guessed too often."""
    cause = f"too many logins of this identifier have failed: try again in {seconds} seconds"
    return f"NOTIFY\nToo Many Requests.\nCause:{cause}\n\n"


def login(who: str, password: str, *lines: str) -> str:
    """A ``REGISTER`` with a password."""
    return register(who, f"Password:{password}", *lines)


def a_scene(**options: Any) -> Scene:
    """A mediator that wants passwords, of Ia and Ib."""
    return Scene(accounts=ACCOUNTS, **options)


def in_threads(**options: Any) -> tuple[Scene, FakePool]:
    """The same, where passwords are checked when the test says so."""
    pool = FakePool(at_once=True)
    scene = a_scene(passwords=cheap_passwords(pool=pool), **options)
    pool.at_once = False
    return scene, pool


def token_of(scene: Scene, name: str, who: str = "Ia", password: str | None = None) -> str:
    """Log in with the password, and give the token."""
    scene.connect(name)
    scene.clients[name].type(login(who, password or f"of {who}", "Transaction:t"))
    found = re.search("^Token:(.+)$", scene.heard(name), re.MULTILINE)
    assert found is not None
    return found[1]


#: First messages of a connection, with their answers: none logs in.
REFUSED = {
    "the wrong password": (login("Ia", "x"), WRONG),
    "another's password": (login("Ia", "of Ib"), WRONG),
    "no account": (login("Ix", "of Ia"), WRONG),
    "a password in other case": (login("Ia", "OF IA"), WRONG),
    "no identifier": ("REGISTER\nPassword:of Ia\n\n", failed("a login needs an Identifier")),
    "both": (
        login("Ia", "of Ia", "Token:x"),
        failed("a login has a Password or a Token, not both"),
    ),
    "a token that is none": (register("Ia", "Token:x"), STALE),
    "a token for no account": (register("Ix", "Token:9999999999.x"), STALE),
    "a bare REGISTER": (register("Ia"), FIRST),
    "an address alone": (register("Ia", "Address:127.0.0.1"), FIRST),
    "a call": (query("Ia", "Ib"), FIRST),
    "a call with a password": (query("Ia", "Ib", "Password:of Ia"), FIRST),
    "PERMITS": ("QUERY\nPERMITS\nIdentifier:Ia\n\n", FIRST),
    "DISCLOSURES": ("QUERY\nDISCLOSURES\nIdentifier:Ia\n\n", FIRST),
}


class PasswordTests:
    """``--auth password``."""

    @pytest.mark.parametrize("case", REFUSED)
    def test_when_no_identity_is_proven_then_nothing_is_changed_or_told(self, case: str) -> None:
        """Each first message that proves none (I1, I4, I5).

        The code is 401: not proven; or 400: not said as it must be.
        """
        said, answer = REFUSED[case]
        scene, store = with_store(PermitChange("Ia", ("Ib",)), accounts={})
        store.at_once = True
        for identifier, password in ACCOUNTS.items():
            result_of(scene.mediator.accounts.add(identifier, password))
        before = len(store.commits)
        scene.new_says("a", said, answer)
        scene.says("a", PERMITS, a=FIRST)
        code = "400" if "needs an" in answer or "not both" in answer else "401"
        transaction = "Transaction:7\n"
        told = f"{answer[:-1]}{transaction}Code:{code}\n\n"
        scene.new_says("a2", f"{said[:-1]}{transaction}\n", told)
        assert len(store.commits) == before
        assert scene.context.connections.all() == []
        assert scene.address("Ia") is None

    def test_when_a_login_has_a_list_and_an_address_then_all_is_done(self) -> None:
        """By one message (A1, A7, A19)."""
        scene = a_scene()
        lines = ("Address:127.0.0.1", "Port:2000", "Accept:Create Ia")
        scene.new_says("b", login("Ib", "of Ib", *lines), DONE)
        assert scene.address("Ib") == ("127.0.0.1", 2000)
        scene.says("b", PERMITS, b=permits("Create Ia"))
        scene.new_says("a", login("Ia", "of Ia"), DONE)
        scene.says("a", query("Ia", "Ib"), b=STATUS)

    def test_when_the_rest_of_a_login_is_refused_then_the_login_stands(self) -> None:
        """And nothing else."""
        scene = a_scene()
        refused = failed("an unspecified, multicast, broadcast or reserved address")
        lines = ("Address:0.0.0.0", "Accept:Create Ib", "Transaction:1")
        scene.connect("a")
        scene.says(
            "a", login("Ia", "of Ia", *lines), a=refused[:-1] + "Transaction:1\nCode:400\n\n"
        )
        scene.says("a", PERMITS, a=permits("Create"))
        scene.clients["a"].type("REGISTER\nTransaction:2\n\n")
        assert "Token" not in scene.heard("a")

    def test_when_a_login_has_a_transaction_then_its_answer_has_a_token(self) -> None:
        """And the epoch; no other answer has a token."""
        scene = a_scene()
        scene.connect("a")
        scene.clients["a"].type(login("Ia", "of Ia", "Transaction:1"))
        answer = r"NOTIFY\nRegistration Completed\.\nEpoch:\S+\nToken:\S+\nTransaction:1\nCode:200"
        assert re.fullmatch(answer + r"\n\n", scene.heard("a"))
        scene.clients["a"].type("REGISTER\nTransaction:2\n\n")
        assert "Token" not in scene.heard("a")
        scene.new_says("b", login("Ib", "of Ib"), DONE)
        scene.clients["b"].type("REGISTER\nTransaction:2\n\n")
        assert "Token" not in scene.heard("b")

    @pytest.mark.parametrize("field", ["Password:of Ia", "Token:x", "Password:of Ib"])
    def test_when_a_connection_has_logged_in_then_it_can_not_again(self, field: str) -> None:
        """Nor as another (I4)."""
        scene = a_scene()
        scene.new_says("a", login("Ia", "of Ia"), DONE)
        scene.says("a", f"REGISTER\n{field}\nAccept:Create Ib\n\n", a=ALREADY)
        other = "this connection belongs to another identifier"
        scene.says("a", register("Ib", field, "Accept:Create Ia"), a=failed(other))
        scene.says("a", PERMITS, a=permits("Create"))

    def test_when_a_terminal_uses_a_name_then_its_answer_has_the_identifier(self) -> None:
        """With a transaction alone (C1)."""
        scene = a_scene()
        result_of(scene.mediator.accounts.add_name("Ia", "太郎"))
        scene.connect("a")
        told = r"NOTIFY\nRegistration Completed\.\nEpoch:\S+\n(?:Token:\S+\n)?Identifier:Ia\n"
        scene.clients["a"].type(login("太郎", "of Ia", "Transaction:1"))
        assert re.match(told, scene.heard("a"))
        scene.clients["a"].type(register("太郎", "Transaction:2"))
        assert re.match(told, scene.heard("a"))
        for again in (register("Ia", "Transaction:3"), "REGISTER\nTransaction:4\n\n"):
            scene.clients["a"].type(again)
            assert "Identifier" not in scene.heard("a")
        scene.says("a", register("太郎"), a=DONE)

    def test_when_a_caller_uses_a_name_then_its_credentials_have_the_identifier(self) -> None:
        """With a transaction (C1)."""
        scene = a_scene(ask_status=False)
        result_of(scene.mediator.accounts.add_name("Ia", "太郎"))
        scene.new_says("b", login("Ib", "of Ib", "Address:127.0.0.1", "Accept:Create 太郎"), DONE)
        scene.new_says("a", login("太郎", "of Ia"), DONE)
        for name, transaction, told in (("太郎", "1", 1), ("Ia", "2", 0)):
            scene.clients["a"].type(query(name, "Ib", f"Transaction:{transaction}"))
            heard = scene.heard("a")
            assert "Callee Address:" in heard
            assert heard.count("\nIdentifier:Ia\n") == told
            assert "\nCaller ID:Ia\n" in scene.heard("b")
        scene.clients["a"].type(query("太郎", "Ib"))
        heard = scene.heard("a")
        assert "Callee Address:" in heard
        assert "Identifier" not in heard

    def test_when_another_logs_in_as_the_terminal_then_the_log_says_so(
        self, logged: Logged
    ) -> None:
        """It takes over the terminal's calls."""
        scene = a_scene(clear_text=True)
        scene.new_says("b", login("Ib", "of Ib", "Address:127.0.0.1"), DONE)
        scene.connect("b2", host="192.0.2.9")
        scene.says("b2", login("Ib", "of Ib", "Address:192.0.2.9"), b2=DONE, b=SUPERSEDED)
        expected = "Ib is now reached over a connection from 192.0.2.9, previously from 127.0.0.1"
        assert any(expected in text for text in logged.texts())

    def test_when_there_is_no_such_account_then_the_work_is_the_same(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One hash, and the same answer (I6)."""
        passwords = cheap_passwords()
        scene = a_scene(passwords=passwords)
        hashed: list[tuple[str, bool]] = []
        check = passwords.check

        async def counted(password: str, verifier: str | None, source: str) -> bool:
            hashed.append((password, verifier is None))
            return await check(password, verifier, source)

        monkeypatch.setattr(passwords, "check", counted)
        scene.new_says("a", login("Ia", "x"), WRONG)
        scene.new_says("x", login("Ix", "x"), WRONG)
        assert hashed == [("x", False), ("x", True)]


class ClearTextTests:
    """Clear text carries no login beyond loopback (I25)."""

    @pytest.mark.parametrize("field", ["Password:of Ia", "Password:x", "Token:x"])
    def test_when_a_login_is_in_clear_text_then_its_password_is_not_looked_at(
        self, field: str
    ) -> None:
        """It is refused, right or wrong: 403, and not 401."""
        scene = a_scene()
        scene.new_says("a", register("Ia", field), CLEAR, host="192.0.2.1")
        scene.says("a", query("Ia", "Ib"), a=FIRST)
        told = CLEAR[:-1] + "Transaction:1\nCode:403\n\n"
        scene.new_says("b", register("Ia", field, "Transaction:1"), told, host="2001:db8::1")
        assert len(login_of(scene).attempts) == 0

    @pytest.mark.parametrize(
        ("host", "options", "is_secure"),
        [
            *((host, {}, False) for host in ("127.0.0.1", "::1", "127.9.9.9", "::ffff:127.0.0.1")),
            pytest.param("192.0.2.1", {"clear_text": True}, False, id="the operator allows it"),
            pytest.param("192.0.2.1", {}, True, id="encrypted"),
        ],
    )
    def test_when_a_login_is_local_allowed_or_encrypted_then_it_is_taken(
        self, host: str, options: Any, is_secure: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No one else can read it, or the operator says so."""
        monkeypatch.setattr(PeerConnection, "secure", property(lambda _: is_secure))
        a_scene(**options).new_says("a", login("Ia", "of Ia"), DONE, host=host)


def login_of(scene: Scene) -> Any:
    """How a scene's mediator finds out who speaks."""
    return scene.mediator._login


class ThreadsTests:
    """What happens while a password is checked elsewhere."""

    def test_when_more_follows_a_login_then_it_waits_for_it(self) -> None:
        """And acts as the terminal that the login proves, in order."""
        scene, pool = in_threads()
        scene.connect("a")
        said = login("Ia", "of Ia", "Accept:Create Ib") + PERMITS + register("Ia", "Accept:Add Ix")
        scene.says("a", said + PERMITS)
        assert len(pool.jobs) == 1
        pool.run()
        scene.reads(a=DONE + permits("Create Ib") + DONE + permits("Create Ib,Ix"))

    def test_when_more_follows_a_wrong_login_then_nothing_of_it_is_done(self) -> None:
        scene, pool = in_threads()
        scene.connect("a")
        scene.says("a", login("Ia", "x", "Accept:Create Ib") + query("Ia", "Ib") + PERMITS)
        pool.run()
        scene.reads(a=WRONG + FIRST + FIRST)
        scene.says("a", login("Ia", "of Ia") + PERMITS)
        scene.clients["a"].end_input()  # it is answered even so, and then closed
        pool.run()
        scene.reads(a=DONE + permits("Create"))
        assert scene.clients["a"].ended

    def test_when_a_password_is_being_checked_then_the_connection_is_not_read(self) -> None:
        """Its bytes stay where they are (I14)."""
        scene, pool = in_threads()
        scene.connect("a")
        scene.says("a", login("Ia", "of Ia"))
        scene.says("a", PERMITS * 1000)
        assert scene.clients["a"].transport.waiting == len(PERMITS) * 1000
        pool.run()
        assert scene.heard("a").count("Accept:Create") == 1000

    @pytest.mark.parametrize("leaves", [True, False])
    def test_when_the_connection_goes_then_its_password_is_not_checked(self, leaves: bool) -> None:
        """Nothing is left behind (I15); the time to log in goes on during the check (I14)."""
        scene, pool = in_threads()
        scene.connect("x", "a")
        scene.says("x", login("Ix", "x"))
        scene.says("a", login("Ia", "of Ia"))
        if leaves:
            scene.leaves("a")
            scene.leaves("x")
        else:
            scene.passes(10.1)
            assert scene.clients["a"].closed
        pool.run()
        assert pool.jobs == []
        assert scene.context.connections.all() == []

    @pytest.mark.parametrize("act", ["reset", "remove"])
    def test_when_the_password_is_changed_during_the_check_then_it_is_wrong(self, act: str) -> None:
        """Though it was right when it was sent (I2)."""
        scene, pool = in_threads()
        scene.connect("a")
        scene.says("a", login("Ia", "of Ia"))
        table = scene.mediator.accounts.table
        table.apply(table.remove("Ia") if act == "remove" else table.reset("Ia", "x", "new"))
        pool.run()
        scene.reads(a=WRONG)

    def test_when_one_source_floods_then_the_owner_waits_for_one_check(self) -> None:
        """And not for all of them (I16)."""
        scene, pool = in_threads(clear_text=True)
        flood = [f"f{number}" for number in range(20)]
        for name in flood:
            scene.connect(name, host="192.0.2.66")
            scene.says(name, login(f"I{name}", "guess"))
        scene.connect("a", host="192.0.2.1")
        scene.says("a", login("Ia", "of Ia"))
        pool.run(3)  # the one that runs, the one whose turn it is, and then the owner's
        scene.reads(a=DONE, f0=WRONG, f1=WRONG)

    def test_when_too_many_wait_then_a_login_is_refused_and_not_counted(self) -> None:
        """It is told to come again; it is no failure."""
        pool = FakePool(at_once=True)
        scene = a_scene(passwords=cheap_passwords(pool=pool, waiting=2))
        pool.at_once = False
        cause = "too many passwords wait to be checked: try again in a few seconds"
        scene.connect(*"abc")
        for name in "abc":
            scene.says(name, login("Ia", "of Ia"))
        for number in range(10):  # as many as are delayed, if they counted
            refused = f"NOTIFY\nToo Many Requests.\nCause:{cause}\n\n"
            scene.new_says(f"d{number}", login("Ia", "x"), refused)
        pool.run(3)
        scene.reads(a=DONE, b=DONE, c=DONE)


class FailuresTests:
    """Guessing is slow, and keeps no one else out (I23)."""

    def guess(self, scene: Scene, times: int, host: str = "192.0.2.66") -> None:
        """Guess wrongly, each on a connection of its own."""
        for _ in range(times):
            scene.new_says("guesser", login("Ia", "guess"), WRONG, host=host)
            scene.leaves("guesser")

    def test_when_ten_logins_have_failed_then_passwords_are_not_looked_at_for_a_while(
        self, logged: Logged
    ) -> None:
        """Right or wrong."""
        scene = a_scene(clear_text=True)
        self.guess(scene, 10)
        scene.new_says("g", login("Ia", "of Ia"), too_many(1), host="192.0.2.66")
        scene.passes(1)
        scene.says("g", login("Ia", "x"), g=WRONG)
        scene.says("g", login("Ia", "of Ia"), g=too_many(2))
        scene.passes(2)
        scene.new_says("h", login("Ia", "of Ia"), DONE, host="192.0.2.66")
        self.guess(scene, 1)
        lines = [text for text in logged.texts() if "fail again and again" in text]
        assert len(lines) == 1
        assert "Logins as Ia from 192.0.2.66" in lines[0]

    def test_when_a_login_is_delayed_then_it_costs_no_work(self) -> None:
        scene, pool = in_threads(clear_text=True)
        for number in range(10):
            scene.connect(f"g{number}", host="192.0.2.66")
            scene.says(f"g{number}", login("Ia", "x"))
        scene.new_says("g", login("Ia", "x"), too_many(1), host="192.0.2.66")
        for _ in range(10):
            pool.run()
        assert pool.jobs == []
        scene.reads(**{f"g{number}": WRONG for number in range(10)})

    def test_when_others_fail_then_the_owner_can_log_in(self) -> None:
        """From elsewhere, and with a token from there too."""
        scene = a_scene(clear_text=True)
        token = token_of(scene, "a")
        self.guess(scene, 10)
        scene.new_says("g", login("Ia", "of Ia"), too_many(1), host="192.0.2.66")
        scene.new_says("owner", login("Ia", "of Ia"), DONE, host="192.0.2.67")
        scene.new_says("same", register("Ia", f"Token:{token}"), DONE, host="192.0.2.66")
        scene.new_says("other", login("Ib", "of Ib"), DONE, host="192.0.2.66")

    @pytest.mark.parametrize(
        ("hosts", "delayed", "name", "not_delayed"),
        [
            # By whatever name the account is called.
            (["192.0.2.66"] * 10, "192.0.2.66", "taro", "192.0.2.67"),
            # All of an IPv6 /56 is one source (I16).
            (
                [f"2001:db8:0:{number}::1" for number in range(10)],
                "2001:db8:0:ff::1",
                "Ia",
                "2001:db8:0:100::1",
            ),
        ],
        ids=["by any name", "from one network"],
    )
    def test_when_guesses_are_of_one_account_and_source_then_they_count_together(
        self, hosts: list[str], delayed: str, name: str, not_delayed: str
    ) -> None:
        """And not with those from elsewhere."""
        scene = a_scene(clear_text=True)
        result_of(scene.mediator.accounts.add_name("Ia", "taro"))
        for host in hosts:
            self.guess(scene, 1, host)
        scene.new_says("g", login(name, "x"), too_many(1), host=delayed)
        scene.new_says("h", login(name, "x"), WRONG, host=not_delayed)

    @pytest.mark.parametrize("said", [login("Ia", "x"), register("Ia", "Token:x")])
    def test_when_the_third_login_fails_then_the_connection_is_closed(self, said: str) -> None:
        """After its answer."""
        scene = a_scene()
        scene.connect("a")
        answer = STALE if "Token" in said else WRONG
        scene.says("a", said * 2 + query("Ia", "Ib"), a=answer * 2 + FIRST)
        assert not scene.clients["a"].ended
        scene.says("a", said + PERMITS, a=answer)
        assert scene.clients["a"].ended


class TokenTests:
    """Resuming."""

    def resume(self, scene: Scene, name: str, token: str, who: str = "Ia") -> str:
        """Show a token on a new connection; the answer."""
        scene.connect(name)
        scene.clients[name].type(register(who, f"Token:{token}"))
        return scene.heard(name)

    def test_when_a_token_is_sent_then_it_logs_in_without_a_hash(self) -> None:
        """The answer has another."""
        scene, pool = in_threads()
        pool.at_once = True
        token = token_of(scene, "a")
        pool.at_once = False
        scene.passes(5)
        scene.connect("b")
        said = register("Ia", f"Token:{token}", "Accept:Create Ib", "Transaction:1")
        scene.clients["b"].type(said + PERMITS)
        answer = scene.heard("b")
        assert "Registration Completed." in answer
        assert f"Token:{token}" not in answer
        assert "Token:" in answer
        assert answer.endswith(permits("Create Ib"))
        assert pool.jobs == []

    def test_when_a_token_is_of_another_account_then_it_is_refused(self) -> None:
        """It logs in as its own account alone (I4)."""
        scene = a_scene()
        assert self.resume(scene, "b", token_of(scene, "a"), "Ib") == STALE

    @pytest.mark.parametrize("act", ["reset", "remove"])
    def test_when_an_account_changes_then_its_tokens_are_void(self, act: str) -> None:
        """Another account of its name and password does not bring them back (I2)."""
        scene = a_scene()
        accounts = scene.mediator.accounts
        token = token_of(scene, "a")
        if act == "reset":
            result_of(accounts.reset("Ia", "of Ia"))
        else:
            result_of(accounts.remove("Ia"))
            assert self.resume(scene, "b", token) == STALE
            result_of(accounts.add("Ia", "of Ia"))
        assert self.resume(scene, "c", token) == STALE
        scene.says("c", login("Ia", "of Ia"), c=DONE)

    def test_when_the_mediator_restarts_then_tokens_are_valid(self) -> None:
        """With the same key and store; not with another key (I20), nor in another epoch, as when
        the store may have lost changes (I2).
        """
        first = a_scene(seed=1)
        token = token_of(first, "a")
        same: dict[str, Any] = {"store": first.broker.store, "accounts": {}}
        assert self.resume(Scene(**same), "b", token) == DONE
        stolen = Scene(**same, key=b"another".ljust(32))
        for scene in (stolen, a_scene(seed=2)):
            assert self.resume(scene, "b", token) == STALE

    def test_when_thirty_days_are_over_then_a_token_expires(self) -> None:
        """Whatever the wall clock does in the meantime (I10)."""
        now = [1e9]
        scene = a_scene(wall=lambda: now[0])
        token = token_of(scene, "a")
        now[0] -= 86400
        scene.passes(30 * 86400 - 1)
        assert self.resume(scene, "b", token) == DONE
        scene.passes(1)
        assert self.resume(scene, "c", token) == STALE


class StolenStoreTests:
    """What the store holds (I20)."""

    def test_when_the_store_is_stolen_then_it_has_no_secret(self) -> None:
        """No password, token or key; and a verifier is no password."""
        scene, store = with_store(accounts={})
        store.at_once = True
        result_of(scene.mediator.accounts.add("Ia", "of Ia"))
        token = token_of(scene, "a")
        (change,) = [one for commit in store.commits for one in commit]
        assert isinstance(change, AccountChange)
        kept = f"{change.identifier} {change.verifier} {change.generation} {change.names}"
        for secret in ("of Ia", token, token.partition(".")[2], "k" * 32):
            assert secret not in kept
        scene.new_says("x", login("Ia", change.verifier or ""), WRONG)
        scene.says("x", register("Ia", f"Token:{change.generation}"), x=STALE)


class SecretsTests:
    """Nothing secret is in a log or a ``repr`` (I18)."""

    def test_when_terminals_log_in_then_no_secret_is_in_the_log(self, logged: Logged) -> None:
        """In a whole conversation, right and wrong, with its failures and delays."""
        scene = Scene(accounts={"Ia": "sesame-right"})
        token = token_of(scene, "a", password="sesame-right")
        scene.new_says("b", register("Ia", f"Token:{token}"), DONE)
        for _ in range(10):
            scene.new_says("g", login("Ia", "sesame-wrong"), WRONG)
            scene.leaves("g")
        scene.new_says("g", register("Ia", "Token:sesame-token"), STALE)
        result_of(scene.mediator.accounts.reset("Ia", "sesame-new"))
        told = " ".join(logged.texts()) + repr(logged.events)
        assert "delayed" in told
        assert "has a new password" in told
        for secret in ("sesame", token, "$argon2id$"):
            assert secret not in told

    def test_when_there_is_a_bug_then_no_secret_is_in_the_traceback(
        self, logged: Logged, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And the peer is told no detail."""

        def broken(*_: object) -> bool:
            raise RuntimeError("a bug")

        monkeypatch.setattr("broker.mediator.auth.passwords.matches", broken)
        scene = a_scene()
        scene.new_says("a", login("Ia", "sesame"), "NOTIFY\nService Unavailable.\n\n")
        (text,) = logged.failures()
        assert "a bug" in text
        assert "sesame" not in text

    def test_when_a_part_is_printed_then_it_shows_no_secret(self) -> None:
        scene = a_scene()
        token = token_of(scene, "a")
        parts = [scene.mediator.accounts, login_of(scene), login_of(scene)._tokens]
        parts += [*scene.mediator.accounts.table, *scene.context.connections.all()]
        told = repr(parts) + repr([vars(part) for part in parts if hasattr(part, "__dict__")])
        for secret in ("of Ia", token, "$argon2id$"):
            assert secret not in told


class CertificateTests:
    """``--auth certificate``; what a certificate must be is in tests/net/tls."""

    @pytest.fixture
    def shows(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scene]:
        """A scene whose connections all show one certificate, or none, where Ix is called taro."""

        def identifier_of(certificate: SimpleNamespace) -> str:
            if not certificate.identifier:
                raise CertificateRefused("its name is for no one")
            identifier: str = certificate.identifier
            return identifier

        def make(shown: str | None, *, revoked: bool = False) -> Scene:
            certificate = None if shown is None else SimpleNamespace(identifier=shown)
            monkeypatch.setattr(module, "certificate_of", lambda _: certificate)
            monkeypatch.setattr(module, "identifier_of", identifier_of)
            table = AccountTable([AccountChange("Ix", "v", "g", ("taro",))])
            revocations: Any = SimpleNamespace(revoked=lambda _: revoked)
            return Scene(login=CertificateLogin(table, revocations))

        return make

    @pytest.mark.parametrize(
        ("said", "answer"),
        [
            (register("Ia"), DONE),
            ("REGISTER\n\n", DONE),
            (PERMITS, permits("Create")),
            (query("Ia", "Ib"), DENIED),
            ("QUERY\nCallee:Ib\n\n", DENIED),
            (register("Ib"), failed("this connection belongs to another identifier")),
            (query("Ib", "Ia"), DENIED),
        ],
    )
    def test_when_a_certificate_is_shown_then_the_connection_acts_as_its_terminal(
        self, shows: Callable[..., Scene], said: str, answer: str
    ) -> None:
        """Whatever it says first, and as no other."""
        scene = shows("Ia")
        scene.new_says("a", said, answer)
        (peer,) = scene.context.connections.all()
        assert peer.identifier == "Ia"

    @pytest.mark.parametrize(
        ("shown", "revoked", "cause"),
        [
            (None, False, "show a certificate: this server takes no other login"),
            ("", False, "invalid certificate: its name is for no one"),
            ("Ia", True, "the certificate has been revoked"),
            ("taro", False, "the certificate's identifier is another's name here"),
        ],
    )
    def test_when_no_valid_certificate_is_shown_then_nothing_is_served(
        self, shows: Callable[..., Scene], shown: str | None, revoked: bool, cause: str
    ) -> None:
        """No identity is proven (I3, I4)."""
        scene = shows(shown, revoked=revoked)
        for number, said in enumerate((register("Ia"), query("Ia", "Ib"), PERMITS)):
            scene.new_says(f"a{number}", said, required(cause))
        assert scene.context.connections.all() == []

    @pytest.mark.parametrize("field", ["Password:x", "Token:x"])
    def test_when_certificates_are_asked_for_then_a_password_is_refused(
        self, shows: Callable[..., Scene], field: str
    ) -> None:
        """It is not ignored either."""
        scene = shows("Ia")
        cause = "this server takes certificates only"
        scene.new_says("a", register("Ia", field), failed(cause))
        assert scene.context.connections.all() == []
