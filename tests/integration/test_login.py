"""Logging in, with real processes: passwords, tokens, certificates, and what is refused (A19)."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.integration.site import (
    COMPLETED,
    DATABASE,
    PASSWORD,
    Site,
    account,
    listening_for_tls,
    password_file,
    server_options,
)
from tests.integration.test_operator import register, typed
from tests.support.certificates import Files, Pki
from tests.support.processes import Running, endpoint

pytestmark = pytest.mark.integration

WRONG = "incorrect horse"


def shown(running: Running, *fields: str) -> tuple[int, ...]:
    """How often Ib has shown a mediator each field, once it has answered."""
    running.wait_for(" > NOTIFY / (?!Login Required)")
    login = " < REGISTER / Identifier:(?:Ib|the office) / "
    return tuple(len(re.findall(f"{login}{field}:", running.said)) for field in fields)


def test_when_the_mediator_restarts_then_a_terminal_is_back_by_its_token(site: Site) -> None:
    """Each side logs in by a name of its, and calls by one; what they agree on holds (C1, A12).

    No password is checked again (A19), nor is any in a log (I18); a password that is set
    voids the token.
    """
    account(site.folder, "Ia", "Ib")
    site.file("sent", b"hello")
    running = site.serve_accounts()
    listen = f"--listen=tcp:{site.port}:interface=127.0.0.1"
    port = site.port
    site.operate("account", "name", "add", "Ia", "taro@example.jp")
    site.operate("account", "name", "add", "Ib", "the office")
    callee = site.callee("--accept=taro@example.jp", site.login, "--trace", identifier="the office")
    assert shown(running, "Password") == (1,)

    def call() -> None:
        done = site.broker(
            *(port, "call", "--as=taro@example.jp", "the office"),
            *("--send=sent", site.login, "--trace"),
        )
        assert done.status == 0, done.err
        assert PASSWORD not in done.out + done.err
        assert site.received() == [b"hello"]

    call()
    running.end(signal.SIGKILL)
    again = site.serve_accounts(listen)
    callee.wait_for("is registered$")
    assert shown(again, "Token", "Password") == (1, 0)
    call()
    # The same password, set again.
    site.operate("account", "reset", "Ib", site.login)
    callee.wait_for("is registered$")
    assert shown(again, "Token", "Password") == (2, 1)
    for one in (running, again, callee):
        assert PASSWORD not in one.said


@pytest.fixture(scope="class")
def guarded(shared: Site) -> Site:
    """A mediator that asks for passwords."""
    account(shared.folder, "Ia", "Ib", "Ic")
    shared.serve_accounts()
    return shared


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A mediator of another operator's, which checks no password."""
    with Site(tmp_path_factory.mktemp("elsewhere")) as site:
        site.serve("--store=memory:", "--trace")
        yield site


class PasswordTests:
    """What a terminal's user sees of logins, limits and disclosures."""

    def test_when_the_password_is_wrong_then_nothing_tells_why(self, guarded: Site) -> None:
        """A wrong password and an identifier without an account: the same words (I6)."""
        said = []
        for identifier in ("Ib", "nobody"):
            with guarded.typing() as typing:
                typing.type(register(identifier, WRONG))
                said.append(typing.read())
        assert said[0] == said[1]
        assert "the identifier or the password is wrong" in said[0]

    def test_when_a_terminals_password_is_wrong_then_it_tries_again_but_not_soon(
        self, guarded: Site
    ) -> None:
        """It says so, once (I23)."""
        terminal = guarded.twistd(
            *("broker-terminal", "--identifier=Ic", f"--mediator={endpoint(guarded.port)}"),
            *("--listen=tcp:0:interface=127.0.0.1", password_file(guarded.folder, WRONG)),
        )
        terminal.wait_for("Ic could not log in and .* the identifier or the password is wrong$")
        assert terminal.end() == 0
        assert guarded.running.said.count(" < REGISTER / Identifier:Ic / Password:") == 1
        assert "incorrect" not in terminal.said.replace("incorrect-horse", "")

    def test_when_a_permit_is_for_one_call_then_the_second_is_refused(self, guarded: Site) -> None:
        """It is gone once it is used; who was told is told (A1, I2)."""
        login = guarded.login
        limits = ("--expires=3600", "--uses=1")
        assert guarded.permit("add", *limits, "Ia", login).status == 0
        listed = guarded.permit("list", login).out
        assert re.fullmatch(r"Ia \((60|59) min left, 1 call left\)\n", listed)
        plain = guarded.permit("list", login, "--plain").out
        assert re.fullmatch(r"Ia;expires=3[56]\d\d;uses=1\n", plain)
        with guarded.typing() as ib, guarded.typing() as ia:
            ib.type(register("Ib", PASSWORD, "Address:127.0.0.1"))
            assert ib.read() == COMPLETED
            ia.type(register("Ia", PASSWORD))
            assert ia.read() == COMPLETED
            ia.type("QUERY\nCallee:Ib\n\n")
            assert ib.read() == "QUERY\nSTATUS\n\n"
            ib.type("NOTIFY\nSTATUS Acceptable.\n\n")
            assert ia.read(2).startswith("NOTIFY\nRequest Accepted.\n")
            ia.type("QUERY\nCallee:Ib\n\n")
            assert ia.read() == "NOTIFY\nPermission Denied.\n\n"
        done = guarded.broker(guarded.port, "disclosures", "--as=Ib", login)
        assert re.fullmatch(r"[-\d]+T[:.\d]+Z\tIa\t127\.0\.0\.1:\d+\tIa\n", done.out)

    def test_when_a_password_is_kept_then_commands_and_terminals_log_in_with_it(
        self, guarded: Site, elsewhere: Site, no_passwords_of_ours: Path
    ) -> None:
        """Until it is forgotten (A19, I18). It is sent to no other mediator, not even on another
        port (I26). A wrong one is not kept.
        """
        server = endpoint(guarded.port)
        wrong = password_file(guarded.folder, WRONG)
        done = guarded.broker(server, "login", "--as=Ib", wrong)
        reason = "the identifier or the password is wrong: it is the one in"
        assert (done.status, done.err.startswith(f"broker: {reason}")) == (4, True)
        assert not no_passwords_of_ours.exists()
        done = guarded.broker(server, "login", "--as=Ib", guarded.login)
        assert done.status == 0, done.err
        (kept,) = [path for path in no_passwords_of_ours.rglob("*") if path.is_file()]
        assert str(kept) in done.out
        assert kept.stat().st_mode & 0o777 == 0o600
        assert guarded.permit("list").status == 0
        guarded.callee()
        assert elsewhere.permit("list").status == 0
        assert shown(elsewhere.running, "Password") == (0,)
        guarded.operate("logout", "--as=Ib", f"--mediator={server}")
        refused = guarded.permit("list")
        assert refused.status == 4
        assert refused.err.startswith("broker: the mediator wants a login: ")
        assert f"broker login --as Ib --mediator {server} asks for the password" in refused.err
        assert PASSWORD not in guarded.running.said + done.out + done.err

    def test_when_none_is_kept_then_a_person_is_asked(self, guarded: Site) -> None:
        """What is typed is not shown (I18); a person that gives up ends it with status 130."""
        command = ["permit", "list", "--as=Ib", f"--mediator={endpoint(guarded.port)}"]
        answers = (f"{PASSWORD}\n".encode(), 0), (b"\x03", 130)
        for answer, expected in answers:
            status, said = typed(guarded.folder, command, answer)
            assert status == expected
            assert PASSWORD not in said
            assert "Traceback" not in said


def own(pki: Pki, files: Files) -> list[str]:
    """A terminal's options."""
    return [f"--ca={pki.ca}", f"--certificate={files.certificate}", f"--private-key={files.key}"]


@pytest.fixture(scope="class")
def certified(shared: Site) -> tuple[Pki, Files, str]:
    """The authority, a certificate of Ib's that is revoked, and where the mediator is."""
    pki = Pki(shared.folder)
    revoked = pki.terminal("Ib")
    pki.revoke(revoked)
    running = shared.twistd(
        *("broker", "--auth=certificate", DATABASE, f"--client-ca={pki.ca}"),
        *(f"--revocation-list={pki.crl}", *server_options(pki.server())),
    )
    return pki, revoked, f"tls:localhost:{listening_for_tls(running)}"


class CertificateTests:
    """A certificate in place of a password, at a mediator that takes nothing else."""

    def test_when_it_is_of_the_authority_then_no_password_is_needed(
        self, shared: Site, certified: tuple[Pki, Files, str]
    ) -> None:
        """It logs in the identifier that it names (A19), and no other (I4)."""
        pki, _, server = certified
        shared.file("sent", b"hello")
        (shared.folder / "in").mkdir()
        shared.terminal(
            *("Ib", server, "--receive=in", "--accept=Ia", f"--revocation-list={pki.crl}"),
            *own(pki, pki.terminal("Ib")),
        )
        options = own(pki, pki.terminal("Ia"))
        done = shared.broker(server, "call", "--as=Ia", "Ib", "--send=sent", *options)
        assert done.status == 0, done.err
        assert shared.received() == [b"hello"]
        assert shared.broker(server, "permit", "add", "--as=Ib", "Ia", *options).status == 4

    @pytest.mark.parametrize(
        ("case", "told"),
        [
            ("revoked", "our certificate has been revoked"),
            ("none", "the mediator wants a login: show a certificate"),
            # Slow: tests/net/tls/test_handshakes.py refuses these without processes.
            *(
                pytest.param(case, told, marks=pytest.mark.slow)
                for case, told in (
                    ("authority", "no authority that it trusts has issued our certificate"),
                    ("expired", "has expired"),
                    ("server", "is not a certificate for a client"),
                )
            ),
        ],
    )
    def test_when_it_is_wrong_then_no_terminal_is_logged_in(
        self, shared: Site, certified: tuple[Pki, Files, str], case: str, told: str
    ) -> None:
        """One of another authority, or for a server, or that has ended, or was revoked; nor does
        none at all (A19, I3).
        """
        pki, revoked, server = certified
        options = {
            "authority": lambda: own(pki, Pki(shared.folder, "Other").terminal("Ib")),
            "expired": lambda: own(pki, pki.terminal("Ib", age=timedelta(days=500))),
            "revoked": lambda: own(pki, revoked),
            "server": lambda: own(pki, pki.server()),
            "none": lambda: [f"--ca={pki.ca}"],
        }[case]()
        done = shared.broker(server, "permit", "add", "--as=Ib", "Ia", *options)
        assert done.status != 0
        assert done.out == ""
        assert told in done.err
        assert len(done.err.splitlines()) == 1
