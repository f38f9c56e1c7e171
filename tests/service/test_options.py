"""The options of the roles as ``twistd`` parses them, and the samples in ``etc``."""

import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
from twisted.python import usage

import broker
from broker.service import mediator, resolver, terminal
from broker.service.settings.options import RoleOptions

ROOT = Path(__file__).resolve().parents[2]
ROLES: list[type[RoleOptions]] = [mediator.Options, resolver.Options, terminal.Options]
#: Options that a role needs.
NEEDED: dict[str, list[str]] = {"broker-terminal": ["--identifier", "Ib"]}


def parse(role: type[RoleOptions], *arguments: str, **parent: Any) -> RoleOptions:
    """Parse a role's arguments as twistd does; ``parent`` are twistd's own options."""
    options = role()
    if parent:
        options.parent = usage.Options()
        options.parent.update({"nodaemon": True, "logfile": None} | parent)
    options.parseOptions([*NEEDED.get(role.role, []), *arguments])
    return options


def errors(role: type[RoleOptions], *arguments: str) -> list[str]:
    """The errors that keep a role from starting."""
    options = role()
    with pytest.raises(SystemExit) as given_up:
        options.parseOptions(list(arguments))
    return str(given_up.value.code).split("\n")


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
    mediator.Options: {
        "listen": ["tcp:1201:interface=127.0.0.1"],
        "udp": (1200, "127.0.0.1"),
        "resolver": None,
        "auth": "password",
        "login-timeout": None,
        "status-timeout": 5,
        "no-status": False,
        "causes": "distinct",
    },
    resolver.Options: {"listen": ["tcp:1200:interface=127.0.0.1"]},
    # Calls from everywhere, since they are encrypted, of at most 1 GiB each.
    terminal.Options: {
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
            mediator.Options,
            "--listen=tcp:1:interface=127.0.0.1",
            "--listen=tcp:2:interface=127.0.0.1",
        )
        assert [listener.interface.port for listener in options["listen"]] == [1, 2]

    def test_flags_can_be_undone(self, tmp_path: Path) -> None:
        """A flag that the file sets can be taken back on the command line, which wins."""
        file = tmp_path / "broker.toml"
        file.write_text("no-status = true\ntrace = true\n")
        options = parse(mediator.Options, "--config", str(file), "--status", "--no-trace")
        assert options["no-status"] is False
        assert options["trace"] is False
        assert parse(mediator.Options, "--config", str(file))["no-status"] is True

    def test_unknown(self) -> None:
        """An unknown option or argument gives one line, not twistd's whole help text."""
        assert errors(mediator.Options, "--bogus") == ["broker: option --bogus not recognized"]
        assert errors(mediator.Options, "word") == ["broker: Wrong number of arguments."]

    def test_all_at_once(self, tmp_path: Path) -> None:
        """All errors of the command line, the file and their combination are reported together."""
        file = tmp_path / "x.toml"
        file.write_text('colour = "red"\n')
        found = errors(
            mediator.Options,
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


class ClearTextTests:
    """Clear text stays on this machine unless the operator allows more (I25)."""

    @pytest.mark.parametrize("role", [mediator.Options, resolver.Options])
    @pytest.mark.parametrize(
        "listen", ["tcp:1201", "tcp:1201:interface=0.0.0.0", r"tcp:1201:interface=\:\:"]
    )
    def test_listening(self, role: type[RoleOptions], listen: str) -> None:
        """A listener that others can reach is refused without ``--allow-clear-text``."""
        (error,) = errors(role, "--listen", listen)
        assert "--allow-clear-text" in error
        assert parse(role, "--listen", listen, "--allow-clear-text")["listen"][0].text == listen

    def test_a_resolver_elsewhere(self) -> None:
        """A resolver on another machine is not asked in clear text either."""
        (error,) = errors(mediator.Options, "--resolver", "tcp:192.0.2.1:1200")
        assert "another machine" in error
        parse(mediator.Options, "--resolver", "tcp:192.0.2.1:1200", "--allow-clear-text")
        parse(mediator.Options, "--resolver", "tcp:127.0.0.1:1200")

    @pytest.mark.parametrize(
        ("listen", "why"),
        [('["tcp:1201"]', "tcp:1201 can be reached"), ("[]", "at least one place to listen")],
    )
    def test_the_file_is_named(self, listen: str, why: str, tmp_path: Path) -> None:
        """If the file sets it, the error names the file. At least one listener is needed."""
        file = tmp_path / "broker.toml"
        file.write_text(f"listen = {listen}\n")
        (error,) = errors(mediator.Options, "--config", str(file))
        assert error.startswith(f"broker: {file}: listen: {why}")


class TogetherTests:
    """Settings that don't go together."""

    @pytest.mark.parametrize(
        ("role", "arguments", "why"),
        [
            # UDP goes to the resolver: a mediator with a resolver elsewhere takes no --udp (A15).
            (
                mediator.Options,
                "--udp 1200 --resolver tcp:127.0.0.1:1200",
                "--udp: terminals register by UDP at the resolver",
            ),
            # A secret that no resolver sees.
            (
                mediator.Options,
                "--mediator-secret x",
                "--mediator-secret: needs a resolver in another process",
            ),
            (terminal.Options, "", "--identifier: name the identifier to log in as"),
            # A missing folder is an error at the start, not at the first call.
            (
                terminal.Options,
                "--identifier Ib --receive /no/where",
                "--receive: /no/where is no folder",
            ),
        ],
    )
    def test_refused(self, role: type[RoleOptions], arguments: str, why: str) -> None:
        """Each gives one line, which names the option."""
        (error,) = errors(role, *arguments.split())
        assert error.startswith(f"{role.role}: {why}")

    def test_udp_with_the_resolver_inside(self) -> None:
        """With its own resolver the mediator takes ``--udp``."""
        assert parse(mediator.Options, "--udp", "1300")["udp"].port == 1300


class PidfileTests:
    """Each role in a folder has its own pid file."""

    @pytest.mark.parametrize(
        ("role", "given", "expected"),
        [
            (mediator.Options, "twistd.pid", "broker.pid"),
            (resolver.Options, "twistd.pid", "broker-resolver.pid"),
            (terminal.Options, "twistd.pid", "broker-terminal-Ib.pid"),
            (mediator.Options, "", ""),
            (mediator.Options, "/tmp/mine.pid", "/tmp/mine.pid"),
        ],
    )
    def test_name(self, role: type[RoleOptions], given: str, expected: str) -> None:
        """The role's own name replaces twistd's default; what the user gives twistd stays."""
        options = parse(role, pidfile=given)
        assert options.parent is not None
        assert options.parent["pidfile"] == expected

    def test_no_path_from_an_identifier(self) -> None:
        """An identifier never names another folder."""
        options = terminal.Options()
        options.parent = usage.Options()
        options.parent["pidfile"] = "twistd.pid"
        options.parseOptions(["--identifier", "../../etc/x"])
        assert options.parent["pidfile"].startswith("broker-terminal-")
        assert "/" not in options.parent["pidfile"]

    def test_a_folder_that_is_not_there(self) -> None:
        """A pid file that can't be written is one line, not twistd's traceback."""
        with pytest.raises(SystemExit, match=r"\Abroker: /no/where/x.pid: no file can be written"):
            parse(mediator.Options, pidfile="/no/where/x.pid")

    def test_empty_pidfile(self, tmp_path: Path) -> None:
        """An empty one, left by a kill, does not prevent a start; any other file stays."""
        empty, other = tmp_path / "empty.pid", tmp_path / "other.pid"
        empty.touch()
        other.write_text("not a number")
        parse(mediator.Options, pidfile=str(empty))
        parse(mediator.Options, pidfile=str(other))
        assert (empty.exists(), other.exists()) == (False, True)

    def test_under_another_runner(self) -> None:
        """``twist``, which writes no pid file, runs the roles too."""
        options = parse(mediator.Options, logfile=None)
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
        assert parse(mediator.Options, **parent).logs_here is here
