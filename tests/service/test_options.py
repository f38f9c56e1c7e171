"""The roles' options as ``twistd`` parses them, and the samples of ``etc/``."""

import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from twisted.python import usage

import broker
from broker.service import mediator, resolver, terminal
from broker.service.settings.options import RoleOptions

ROOT = Path(__file__).resolve().parents[2]
ROLES: list[type[RoleOptions]] = [mediator.Options, resolver.Options, terminal.Options]
#: What a role can't do without.
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
    """The lines with which a role gives up."""
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
        """The sample holds each setting, at its default, and nothing else, in the same order."""
        with self.sample(role).open("rb") as file:
            sample = tomllib.load(file)
        assert list(sample) == [setting.name for setting in role.settings]
        assert sample == {setting.name: setting.default for setting in role.settings}

    def test_is_taken(self, role: type[RoleOptions]) -> None:
        """A role started with its sample is set as one started without."""
        with_sample = parse(role, "--config", str(self.sample(role)))
        assert dict(with_sample) == dict(parse(role))

    def test_says_what_each_is_for(self, role: type[RoleOptions]) -> None:
        """Above each setting stands a comment."""
        lines = self.sample(role).read_text(encoding="utf-8").splitlines()
        for above, line in pairwise(lines):
            if " = " in line and not line.startswith("#"):
                assert above.startswith("# "), line

    def test_every_setting_is_an_option(
        self, role: type[RoleOptions], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """``--help`` shows each setting, and exits with 0."""
        with pytest.raises(SystemExit) as done:
            parse(role, "--help")
        assert done.value.code == 0
        shown = capsys.readouterr().out
        for setting in role.settings:
            assert f"--{setting.name}{'' if setting.flag else '='}" in shown
        assert "--config=" in shown

    def test_version(self, role: type[RoleOptions], capsys: pytest.CaptureFixture[str]) -> None:
        """``--version`` is ours, not Twisted's."""
        with pytest.raises(SystemExit) as done:
            parse(role, "--version")
        assert done.value.code == 0
        assert capsys.readouterr().out == f"broker {broker.__version__}\n"


class DefaultTests:
    """What the documents of the product promise of the defaults."""

    def test_mediator(self) -> None:
        """The mediator listens on loopback, wants a password, and gives a call 5 s."""
        options = parse(mediator.Options)
        assert [one.text for one in options["listen"]] == ["tcp:1201:interface=127.0.0.1"]
        assert options["udp"] == (1200, "127.0.0.1")
        assert options["resolver"] is None
        assert options["auth"] == "password"
        assert options["login-timeout"] is None  # as suits how it is proven who somebody is
        assert options["status-timeout"] == 5
        assert options["no-status"] is False
        assert options["causes"] == "distinct"

    def test_resolver(self) -> None:
        """The resolver listens on loopback."""
        options = parse(resolver.Options)
        assert [one.text for one in options["listen"]] == ["tcp:1200:interface=127.0.0.1"]

    def test_terminal(self) -> None:
        """The terminal takes calls from everywhere, since they are encrypted, up to 1 GiB each."""
        options = parse(terminal.Options)
        assert options["listen"].text == "tcp:1203"
        assert options["mediator"].text == "tcp:127.0.0.1:1201"
        assert options["max-size"] == 1 << 30
        assert options["max-load"] is None


class OptionsTests:
    """The command line."""

    def test_repeated(self) -> None:
        """A repeatable option holds all its values in order; they replace the default."""
        options = parse(
            mediator.Options,
            "--listen=tcp:1:interface=127.0.0.1",
            "--listen=tcp:2:interface=127.0.0.1",
        )
        assert [one.interface.port for one in options["listen"]] == [1, 2]

    def test_flags_can_be_undone(self, tmp_path: Path) -> None:
        """A flag that the file sets can be taken back on the command line, which wins."""
        file = tmp_path / "broker.toml"
        file.write_text("no-status = true\ntrace = true\n")
        options = parse(mediator.Options, "--config", str(file), "--status", "--no-trace")
        assert options["no-status"] is False
        assert options["trace"] is False
        assert parse(mediator.Options, "--config", str(file))["no-status"] is True

    def test_unknown_option(self) -> None:
        """One line, not twistd's whole help."""
        assert errors(mediator.Options, "--bogus") == ["broker: option --bogus not recognized"]

    def test_stray_argument(self) -> None:
        """What is no option is an error too."""
        assert errors(mediator.Options, "word") == ["broker: Wrong number of arguments."]

    def test_all_at_once(self, tmp_path: Path) -> None:
        """Errors of the command line, of the file and of both together are told together."""
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
    """What is said in clear stays on this machine, unless the operator says otherwise (I25)."""

    @pytest.mark.parametrize("role", [mediator.Options, resolver.Options])
    @pytest.mark.parametrize(
        "listen", ["tcp:1201", "tcp:1201:interface=0.0.0.0", r"tcp:1201:interface=\:\:"]
    )
    def test_listening(self, role: type[RoleOptions], listen: str) -> None:
        """A listener that others reach is refused, and taken with ``--allow-clear-text``."""
        (error,) = errors(role, "--listen", listen)
        assert "--allow-clear-text" in error
        assert parse(role, "--listen", listen, "--allow-clear-text")["listen"][0].text == listen

    def test_the_place_is_named(self, tmp_path: Path) -> None:
        """Where the file says it, the file is named."""
        file = tmp_path / "broker.toml"
        file.write_text('listen = ["tcp:1201"]\n')
        (error,) = errors(mediator.Options, "--config", str(file))
        assert error.startswith(f"broker: {file}: listen: tcp:1201 can be reached")

    def test_a_resolver_elsewhere(self) -> None:
        """Neither is a resolver on another machine asked in clear."""
        (error,) = errors(mediator.Options, "--resolver", "tcp:192.0.2.1:1200")
        assert "another machine" in error
        parse(mediator.Options, "--resolver", "tcp:192.0.2.1:1200", "--allow-clear-text")
        parse(mediator.Options, "--resolver", "tcp:127.0.0.1:1200")

    def test_nowhere(self, tmp_path: Path) -> None:
        """At least one listener is needed."""
        file = tmp_path / "broker.toml"
        file.write_text("listen = []\n")
        assert errors(mediator.Options, "--config", str(file)) == [
            f"broker: {file}: listen: at least one place to listen is needed"
        ]


class TogetherTests:
    """Settings that don't go together."""

    def test_udp_with_a_resolver_apart(self) -> None:
        """Datagrams go to the resolver: the mediator beside it takes no ``--udp`` (A15)."""
        (error,) = errors(mediator.Options, "--udp", "1200", "--resolver", "tcp:127.0.0.1:1200")
        assert error.startswith("broker: --udp: terminals register by UDP at the resolver")
        assert parse(mediator.Options, "--udp", "1300")["udp"].port == 1300

    def test_a_secret_for_nobody(self) -> None:
        """A secret that no resolver will see is an error."""
        (error,) = errors(mediator.Options, "--mediator-secret", "x")
        assert error == "broker: --mediator-secret: needs a resolver in another process"

    def test_a_terminal_is_somebody(self) -> None:
        """A terminal without an identifier doesn't start."""
        assert errors(terminal.Options) == [
            "broker-terminal: --identifier: name the identifier to log in as"
        ]

    def test_no_folder_to_receive_in(self, tmp_path: Path) -> None:
        """A folder that isn't there is an error at the start, not at the first call."""
        path = tmp_path / "none"
        assert errors(terminal.Options, "--identifier", "Ib", "--receive", str(path)) == [
            f"broker-terminal: --receive: {path} is no folder"
        ]


class PidfileTests:
    """Each role of a folder has a pid file of its own, so that they don't take each other's."""

    @pytest.mark.parametrize(
        ("role", "expected"),
        [
            (mediator.Options, "broker.pid"),
            (resolver.Options, "broker-resolver.pid"),
            (terminal.Options, "broker-terminal-Ib.pid"),
        ],
    )
    def test_default(self, role: type[RoleOptions], expected: str) -> None:
        """Where twistd was given none, the role's own takes the place of twistd's default."""
        options = parse(role, pidfile="twistd.pid")
        assert options.parent is not None
        assert options.parent["pidfile"] == expected

    @pytest.mark.parametrize("given", ["", "/tmp/mine.pid"])
    def test_given(self, given: str) -> None:
        """What twistd was given stays, also where that is none."""
        options = parse(mediator.Options, pidfile=given)
        assert options.parent is not None
        assert options.parent["pidfile"] == given

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
        """One that was left empty by a kill is no reason not to start; any other file stays."""
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
    """Whether an error on standard error would be seen beside the log."""

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
        """It does so in the foreground, with no other place named for the log."""
        assert parse(mediator.Options, **parent).logs_here is here
