"""The options of the roles as ``twistd`` parses them, and the samples in ``etc``."""

import re
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

import broker
from broker.service.settings import tls as tls_settings
from broker.service.settings.credentials import Keyring
from broker.service.settings.options import RoleOptions
from tests.service.scene import (
    LOOPBACK_TLS,
    MEDIATOR,
    RESOLVER,
    ROLES,
    TERMINAL,
    a_file,
    errors,
    pair,
    parse,
)
from tests.support.certificates import Pki

ROOT: Final = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("role", ROLES)
class SampleTests:
    """The sample configuration of each role."""

    def sample(self, role: type[RoleOptions]) -> Path:
        """The sample's path."""
        return ROOT / "etc" / f"{role.role}.toml"

    def test_every_setting_at_its_default(self, role: type[RoleOptions]) -> None:
        """The sample has each setting at its default, in the same order, and no other."""
        with self.sample(role).open("rb") as file:
            sample = tomllib.load(file)
        assert list(sample) == [setting.name for setting in role.settings]
        assert sample == {setting.name: setting.default for setting in role.settings}

    def test_is_taken(self, role: type[RoleOptions]) -> None:
        """A role has the same settings with its sample as without."""
        with_sample = parse(role, "--config", str(self.sample(role)))
        assert dict(with_sample) == dict(parse(role))

    def test_says_what_each_is_for(self, role: type[RoleOptions]) -> None:
        """Above each setting is a comment."""
        lines = self.sample(role).read_text(encoding="utf-8").splitlines()
        for above, line in pairwise(lines):
            if " = " in line and not line.startswith("#"):
                assert above.startswith("# "), line

    def test_help_and_version(
        self, role: type[RoleOptions], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """``--help`` shows each setting; ``--version`` is ours, not Twisted's; both exit with 0."""
        shown = []
        for option in ("--help", "--version"):
            with pytest.raises(SystemExit) as done:
                parse(role, option)
            assert done.value.code == 0
            shown.append(capsys.readouterr().out)
        for setting in role.settings:
            assert f"--{setting.name}{'' if setting.flag else '='}" in shown[0]
        assert "--config=" in shown[0]
        assert shown[1] == f"broker {broker.__version__}\n"


#: What the documents promise of the defaults. A listener is shown as its text.
DEFAULTS: Final[dict[type[RoleOptions], dict[str, Any]]] = {
    # Loopback only; the login timeout follows from auth.
    MEDIATOR: {
        "listen": ["tcp:1201:interface=127.0.0.1"],
        "udp": (1200, "127.0.0.1"),
        "resolver": None,
        "auth": "password",
        "login-timeout": None,
        "status-timeout": 5,
        "no-status": False,
        "causes": "distinct",
    },
    RESOLVER: {"listen": ["tcp:1200:interface=127.0.0.1"]},
    # Calls from everywhere, since they are encrypted, of at most 1 GiB each.
    TERMINAL: {
        "listen": "tcp:1203",
        "mediator": "tcp:127.0.0.1:1201",
        "max-size": 1 << 30,
        "max-load": None,
    },
}


@pytest.mark.parametrize("role", ROLES)
def test_defaults(role: type[RoleOptions]) -> None:
    """The defaults are those of the documents."""
    options = parse(role)
    for name, expected in DEFAULTS[role].items():
        value = options[name]
        shown = [item.text for item in value] if isinstance(value, list) else value
        assert getattr(shown, "text", shown) == expected, name


class OptionsTests:
    """The command line."""

    def test_repeated(self) -> None:
        """The values of a repeated option are kept in order, and replace the default."""
        options = parse(
            MEDIATOR,
            "--listen=tcp:1:interface=127.0.0.1",
            "--listen=tcp:2:interface=127.0.0.1",
        )
        assert [listener.interface.port for listener in options["listen"]] == [1, 2]

    def test_flags_can_be_undone(self, tmp_path: Path) -> None:
        """A flag that the file sets can be taken back on the command line, which wins."""
        file = tmp_path / "broker.toml"
        file.write_text("no-status = true\ntrace = true\n")
        options = parse(MEDIATOR, "--config", str(file), "--status", "--no-trace")
        assert options["no-status"] is False
        assert options["trace"] is False
        assert parse(MEDIATOR, "--config", str(file))["no-status"] is True

    def test_unknown(self) -> None:
        """An unknown option or argument gives one line, not twistd's whole help text."""
        assert errors(MEDIATOR, "--bogus") == ["broker: option --bogus not recognized"]
        assert errors(MEDIATOR, "word") == ["broker: Wrong number of arguments."]

    def test_all_at_once(self, tmp_path: Path) -> None:
        """All errors of the command line, the file and their combination are reported together."""
        file = tmp_path / "x.toml"
        file.write_text('colour = "red"\n')
        found = errors(
            MEDIATOR,
            *("--config", str(file), "--login-timeout", "soon", "--store", "redis:x"),
            *("--auth", "secret", "--listen", "tcp:1201"),
        )
        assert found[:4] == [
            f"broker: {file}: colour: there is no such setting",
            "broker: --store: 'redis:x' is not offered: only memory: or sqlite:PATH",
            "broker: --auth: 'secret' is not offered: only password or certificate or none",
            "broker: --login-timeout: 'soon' is no number",
        ]
        assert len(found) == 5
        assert found[4].startswith("broker: --listen: tcp:1201 can be reached from other machines")


#: What keeps a role from starting (I3): what is typed, and the line that it prints ("…" stands for
#: anything). "servers" stands for the mediator and the resolver; a name in {} is that of a file.
REFUSED: Final = r"""
# Clear text, and what others say of themselves, stay on this machine unless allowed (I25).
$ broker --listen=tcp:1201
--listen: tcp:1201 can be reached from other machines, … in clear text: …use --allow-clear-text
$ servers --auth=none --listen=tcp:1201
--listen: tcp:1201 can be reached from other machines, … believed, in clear text: {allow}
$ servers --auth=none --listen=tcp:1201:interface=0.0.0.0
--listen: tcp:1201:interface=0.0.0.0 can be reached … believed, in clear text: {allow}
$ servers --auth=none '--listen=tcp:1201:interface=\:\:'
--listen: tcp:1201:interface=\:\: can be reached … believed, in clear text: {allow}
$ broker --resolver=tcp:192.0.2.1:1200
--resolver: tcp:192.0.2.1:1200 is another machine, …
$ broker-terminal --mediator=tcp:192.0.2.1:1201
--mediator: … would go there in clear text: …
# TLS hides what is said, and doesn't prove who says it.
$ servers --auth=none --listen-tls=tcp:1202 {own}
--listen-tls: tcp:1202 can be reached … any identifier is believed, even over TLS: {allow}
$ servers --auth=none --listen-tls=tcp:1202 --client-ca={ca} {own}
--listen-tls: tcp:1202 can be reached … any identifier is believed, even over TLS: {allow}
# Files of TLS, a key that others can read among them (I18).
$ servers {tls}
--listen-tls: TLS needs --certificate and --private-key
$ servers {tls} --certificate={certificate}
--listen-tls: TLS needs --private-key
$ servers {tls} {own} --revocation-list=x
--revocation-list: can't be checked without --client-ca
$ servers {tls} {own} --certificate=/no/where.pem
--listen-tls: /no/where.pem: No such file or directory
$ servers {tls} {own} --private-key={exposed}
--listen-tls: {exposed}: others can read or change it: …
$ servers {tls} {own} --private-key={other}
--listen-tls: … is not the certificate of the key in {other}
# Certificates that no peer would see, and names that none could prove.
$ servers --certificate={certificate}
--certificate: needs --listen-tls
$ broker --resolver-ca={ca}
--resolver-ca: needs a resolver that is named as tls:HOST:PORT
$ broker --resolver=tls:192.0.2.1:1204 --resolver-certificate=x
--resolver: a certificate needs its private key, and the key its certificate
$ broker-terminal --ca={ca}
--ca: needs a mediator that is named as tls:HOST:PORT
$ broker-terminal --certificate={ib_certificate}
--certificate: needs a mediator that is named as tls:HOST:PORT
$ broker-terminal --mediator=tls:localhost:1202 --ca={ca} --certificate={ib_certificate}
--mediator: a certificate needs its private key, and the key its certificate
$ broker-terminal --mediator=tls:localhost:1202 --ca={ca} {own}
--mediator: {certificate}: is not a certificate for a client
$ broker-resolver --mediators=east
--mediators: their certificates need --listen-tls and --client-ca
$ broker --auth=certificate
--auth: certificates need --listen-tls and --client-ca
$ broker --auth=certificate {tls} {own} --client-ca={ca} --listen=tcp:1201:interface=127.0.0.1
--listen: without TLS no terminal can show a certificate: leave it out
# UDP and the provider's zone are the resolver's, also if that is another process (A15).
$ broker --udp=1200 --resolver=tcp:127.0.0.1:1200
--udp: terminals register by UDP at the resolver: …
$ broker --auth=none --provider-zone=sub.example.jp --resolver=tcp:[::1]:1200
--provider-zone: the resolver asks the provider: …
# A secret that no resolver sees.
$ broker --mediator-secret=x
--mediator-secret: needs a resolver in another process
$ broker --ledger-days=0
--ledger-days: must be from 1 to 36500
$ broker --ledger-days=36501
--ledger-days: must be from 1 to 36500
$ broker --ledger-days=x
--ledger-days: must be a number
$ broker --ledger-days=1.5
--ledger-days: must be a number
$ broker-terminal --identifier=
--identifier: name the identifier to log in as
# A missing folder is an error at the start, not at the first call.
$ broker-terminal --receive=/no/where
--receive: /no/where is no folder
# The policy and the file of a call password go together.
$ broker-terminal --policy=password
--policy: password needs a call-password-file
$ broker-terminal --call-password-file={secret}
--call-password-file: goes with the policy password
$ broker-terminal --call-password-file={secret} --policy=list
--call-password-file: goes with the policy password
$ broker-terminal --call-password-file={exposed} --policy=password
--call-password-file: {exposed}: others can read or change it: …
$ broker-terminal --call-password-file={empty} --policy=password
--call-password-file: {empty}: holds no password: …
# So do the policy and the file of consent, which must be one (I3).
$ broker-terminal --policy=ask
--policy: ask needs a consent-file, which names the callers to accept
$ broker-terminal --consent-file={secret}
--consent-file: goes with the policy ask
$ broker-terminal --consent-file=/no/where --policy=ask
--consent-file: /no/where: No such file or directory…
$ broker-terminal --consent-file={secret} --policy=ask
--consent-file: {secret}: line 1: …
$ broker-terminal --policy=secret
--policy: 'secret' is neither list nor ask nor password
# The address can't be both given and found out.
$ broker-terminal --open-port --address=203.0.113.7
--open-port: finds out the address itself: leave out address
# Without UDP nothing could wake the terminal.
$ broker-terminal --no-hold
--no-hold: needs udp, …
"""
#: What a role takes, TLS and allowed clear text among it (I25).
TAKEN: Final = r"""
$ servers --allow-clear-text --listen=tcp:1201
$ servers --allow-clear-text --listen=tcp:1201:interface=0.0.0.0
$ servers --allow-clear-text '--listen=tcp:1201:interface=\:\:'
$ servers --allow-clear-text --listen-tls=tcp:1202 --auth=none {own}
$ servers {tls} {own} --client-ca={ca} --revocation-list={crl}
$ servers --auth=none --provider-zone=sub.example.jp
$ broker --listen-tls=tcp:1202 {own} --client-ca={ca} --auth=password
$ broker --listen-tls=tcp:1202 {own} --client-ca={ca} --auth=certificate
$ broker --resolver=tcp:192.0.2.1:1200 --allow-clear-text
$ broker --resolver=tcp:127.0.0.1:1200
$ broker --resolver=tls:192.0.2.1:1204 --resolver-ca={ca}
$ broker-terminal --mediator=tls:localhost:1202 --ca={ca}
$ broker-terminal --mediator=tls:localhost:1202 --ca={ca} {ib} --revocation-list={crl}
"""


def typed(table: str) -> list[tuple[type[RoleOptions], str, str]]:
    """The role, the arguments and the answer of each line that is typed in a table."""
    roles = {role.role: [role] for role in ROLES} | {"servers": [MEDIATOR, RESOLVER]}
    return [
        (role, arguments, answer)
        for name, arguments, answer in re.findall(r"^\$ (\S+) (.+)\n([^$#\n].*)?", table, re.M)
        for role in roles[name]
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the names in {} stand for."""
    folder = tmp_path_factory.mktemp("options")
    pki = Pki(folder)
    own, ib = pki.server(), pki.terminal("Ib")
    return {
        "tls": LOOPBACK_TLS,
        "own": " ".join(pair(own)),
        "ib": " ".join(pair(ib)),
        "certificate": own.certificate,
        "ib_certificate": ib.certificate,
        "other": pki.server().key,
        "ca": pki.ca,
        "crl": pki.crl,
        "secret": a_file(folder / "secret"),
        "exposed": a_file(folder / "exposed", Path(own.key).read_bytes(), 0o644),
        "empty": a_file(folder / "empty", b"\n"),
        "allow": "listen on interface=127.0.0.1, or use --allow-clear-text",
    }


class TogetherTests:
    """Settings that don't go together, or that no role can have: each is one line at the start."""

    @pytest.mark.parametrize(("role", "arguments", "why"), typed(REFUSED))
    def test_refused(
        self, role: type[RoleOptions], arguments: str, why: str, files: dict[str, Any]
    ) -> None:
        """The line names the role and the option."""
        identifier = ["--identifier=Ib"] if role is TERMINAL else []
        (error,) = errors(role, *identifier, *shlex.split(arguments.format(**files)))
        parts = f"{role.role}: {why.format(**files)}".split("…")
        assert re.fullmatch(".*".join(map(re.escape, parts)), error)

    @pytest.mark.parametrize(("role", "arguments", "_"), typed(TAKEN))
    def test_taken(
        self,
        role: type[RoleOptions],
        arguments: str,
        _: str,
        files: dict[str, Any],
        no_passwords_of_ours: Path,
    ) -> None:
        """What goes together is taken; with a certificate no password is looked for (A19)."""
        if "{ib}" in arguments:
            kept = Keyring(no_passwords_of_ours / "broker").keep("Ib", "tls:localhost:1202", "x")
            kept.chmod(0o644)  # which would be refused
        words = shlex.split(arguments.format(**files))
        options = parse(role, *words)
        is_terminal = role is TERMINAL
        tls = (tls_settings.mediator_tls if is_terminal else tls_settings.server_tls)(options)
        assert (tls is not None) == (is_terminal or any("--listen-tls" in word for word in words))
        listens = {word.partition("=")[2] for word in words if word.startswith("--listen=")}
        assert is_terminal or listens <= {listener.text for listener in options["listen"]}

    def test_udp_with_the_resolver_inside(self) -> None:
        """With its own resolver the mediator takes ``--udp``."""
        assert parse(MEDIATOR, "--udp", "1300")["udp"].port == 1300

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ('listen = ["tcp:1201"]', "listen: tcp:1201 can be reached"),
            ("listen = []", "listen: at least one place to listen"),
        ],
    )
    def test_the_file_is_named(self, settings: str, expected: str, tmp_path: Path) -> None:
        """If the file sets it, the error names the file. At least one listener is needed."""
        file = tmp_path / "broker.toml"
        file.write_text(settings)
        (error,) = errors(MEDIATOR, "--config", str(file))
        assert error.startswith(f"broker: {file}: {expected}")

    def test_tls_alone(self, tmp_path: Path, files: dict[str, str]) -> None:
        """A server may do without a place for clear text."""
        file = tmp_path / "broker.toml"
        file.write_text("listen = []\n")
        arguments = (f"--config={file}", LOOPBACK_TLS, *files["own"].split())
        assert parse(MEDIATOR, *arguments)["listen"] == []


def pidfile(role: type[RoleOptions], given: str, *arguments: str) -> str:
    """The pid file of a role, where this one is given to twistd."""
    options = parse(role, *arguments, parent={"pidfile": given})
    assert options.parent is not None
    return str(options.parent["pidfile"])


class PidfileTests:
    """Each role in a folder has its own pid file."""

    @pytest.mark.parametrize(
        ("role", "given", "expected"),
        [
            (MEDIATOR, "twistd.pid", "broker.pid"),
            (RESOLVER, "twistd.pid", "broker-resolver.pid"),
            (TERMINAL, "twistd.pid", "broker-terminal-Ib.pid"),
            (MEDIATOR, "", ""),
            (MEDIATOR, "/tmp/mine.pid", "/tmp/mine.pid"),
        ],
    )
    def test_name(self, role: type[RoleOptions], given: str, expected: str) -> None:
        """The role's own name replaces twistd's default; what the user gives twistd stays. An
        identifier never names another folder.
        """
        assert pidfile(role, given) == expected
        odd = pidfile(TERMINAL, "twistd.pid", "--identifier=../../etc/x")
        assert odd.startswith("broker-terminal-")
        assert "/" not in odd

    def test_no_file(self) -> None:
        """A pid file that can't be written is one line, not twistd's traceback."""
        with pytest.raises(SystemExit, match=r"\Abroker: /no/where/x.pid: no file can be written"):
            pidfile(MEDIATOR, "/no/where/x.pid")

    def test_empty_pidfile(self, tmp_path: Path) -> None:
        """An empty one, left by a kill, does not prevent a start; any other file stays."""
        empty, other = tmp_path / "empty.pid", tmp_path / "other.pid"
        empty.touch()
        other.write_text("not a number")
        pidfile(MEDIATOR, str(empty))
        pidfile(MEDIATOR, str(other))
        assert (empty.exists(), other.exists()) == (False, True)

    def test_under_another_runner(self) -> None:
        """``twist``, which writes no pid file, runs the roles too."""
        options = parse(MEDIATOR, parent={})
        assert options.parent is not None
        assert "pidfile" not in options.parent


class LogsHereTests:
    """Whether the log goes to the terminal, where errors are printed too."""

    @pytest.mark.parametrize(
        ("parent", "here"),
        [
            ({"nodaemon": True, "logfile": None}, True),
            ({"nodaemon": True, "logfile": "-"}, True),
            ({"nodaemon": True, "logfile": "x.log"}, False),
            ({"nodaemon": False, "logfile": None}, False),
            ({"nodaemon": True, "logfile": None, "syslog": True}, False),
        ],
    )
    def test_logs_here(self, parent: dict[str, Any], here: bool) -> None:
        """It does in the foreground, if no other place is named for the log."""
        assert parse(MEDIATOR, parent=parent).logs_here is here
