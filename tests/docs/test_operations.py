"""What docs/operations.md says of ports, rules for firewalls, settings and the log is so."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from broker.net.udp_port import RECEIVE_BYTES
from broker.service import mediator, resolver, terminal
from broker.service.settings.options import RoleOptions
from broker.service.settings.setting import Setting
from broker.service.settings.values import UDP
from tests.integration.site import account, password_file
from tests.natlab.conftest import Build, build, lab_flags
from tests.natlab.lab import SERVER, Lab, Router
from tests.support.certificates import Pki
from tests.support.processes import BROKER, TWISTD, Running

__all__ = ["build", "lab_flags"]

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = (ROOT / "docs" / "operations.md").read_text("utf-8")
ROLES: Final[dict[str, type[RoleOptions]]] = {
    "mediator": mediator.Options,
    "resolver": resolver.Options,
    "terminal": terminal.Options,
}
_BLOCK: Final = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
#: Where nft is, which is nowhere in the path of an ordinary user.
_NFT: Final = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin")
#: What stands for whatever may stand there, in a quoted line of the log.
_ANYTHING: Final = "…"
#: Characters that a text of the code must have itself, so that a line is taken for it.
_OWN_LEAST: Final = 6
_FIELD: Final = re.compile(r"\{\w+(?:!\w)?(?::[^}]*)?\}")


def section(heading: str) -> str:
    """The text under a heading, up to the next of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    _, found, rest = PAGE.partition(f"\n{heading}\n")
    assert found, f"there is no section {heading!r}"
    bare = _BLOCK.sub(lambda found: "x" * len(found[0]), rest)  # in a block # begins a comment
    end = re.search(rf"^#{{1,{level}}} ", bare, re.M)
    return rest if end is None else rest[: end.start()]


def block(kind: str, heading: str) -> str:
    """The one block of a kind under a heading."""
    found: list[str] = [text for said, text in _BLOCK.findall(section(heading)) if said == kind]
    (only,) = found
    return only


def rows(heading: str) -> list[list[str]]:
    """The cells of the rows of all tables under a heading, their heads left out."""
    lines = [line for line in section(heading).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[0] not in ("port", "from", "line")]


# Ports.


def setting(role: str, name: str) -> Setting:
    """A setting of a role."""
    (found,) = [one for one in ROLES[role].settings if one.name == name]
    return found


def places(said: Setting) -> list[str]:
    """Where a role listens without a word from anybody; for TLS, where its help says."""
    default = said.default if isinstance(said.default, list) else [said.default]
    return [str(one) for one in default] or re.findall(r"tcp:\d+", said.help)


class PortsTests:
    """The table of ports, and what opens them."""

    def test_ports(self) -> None:
        """Each port is the one that its role takes, and where it is said to be for this machine
        alone it is (I25). No role has a port that the table leaves out.
        """
        told = {}
        ports = [row for row in rows("## Ports and the firewall") if re.match("TCP|UDP", row[0])]
        for port, whose, _, to in ports:
            found = re.match(r"the (\w+)'s, `--([\w-]+)`", whose)
            protocol, number = port.split()
            if found is None:
                assert (protocol, number) == ("TCP,", "any")
                continue
            (place,) = places(setting(found[1], found[2]))
            expected = f"{number}:" if protocol == "UDP" else f"tcp:{number}"
            assert place.startswith(expected)
            assert ("this machine alone" in to or "as 1201" in to) == ("127.0.0.1" in place)
            told[found[1], found[2]] = number
        assert told == {
            ("mediator", "listen-tls"): "1202",
            ("mediator", "listen"): "1201",
            ("mediator", "udp"): "1200",
            ("resolver", "listen-tls"): "1204",
            ("resolver", "listen"): "1200",
            ("terminal", "listen"): "1203",
        }
        # The resolver's is told with the mediator's; the terminal's is where it sends to.
        assert setting("resolver", "udp").default == setting("mediator", "udp").default
        kinds = {"listen", "listen-tls", "udp"}
        named = {(role, one.name) for role in ROLES for one in ROLES[role].settings}
        have = {(role, name) for role, name in named if name in kinds}
        assert have - set(told) == {("resolver", "udp"), ("terminal", "udp")}

    def test_udp_values(self) -> None:
        """What is shown for ``udp`` are values that it takes."""
        shown = re.findall(r'`udp = "([^"]+)"`', PAGE)
        assert {"1200", "1200:[::]", "1200:192.0.2.7", "none"} == set(shown)
        assert UDP.parse("none") is None
        hosts = {text: getattr(UDP.parse(text), "host", None) for text in shown if text != "none"}
        assert hosts == {"1200": "0.0.0.0", "1200:[::]": "::", "1200:192.0.2.7": "192.0.2.7"}

    def test_buffer(self) -> None:
        """The limit for the kernel's buffer is as much as is asked for."""
        told = block("sysctl", "### The server's port for datagrams")
        assert told == f"net.core.rmem_max = {RECEIVE_BYTES}\n"


# Rules.


RULES: Final = [text for kind, text in _BLOCK.findall(PAGE) if kind == "nft"]


class RulesTests:
    """The rules for nftables."""

    @pytest.mark.integration
    @pytest.mark.parametrize("rules", RULES)
    def test_accepted(self, rules: str, lab_flags: list[str]) -> None:
        """Nft takes them as they stand there."""
        assert _NFT is not None
        done = subprocess.run(
            ["unshare", *lab_flags, _NFT, "-c", "-f", "-"],
            input=rules,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    @pytest.mark.integration
    def test_a_call_through_them(self, build: Build) -> None:
        """With the server's rules, the router's, and the settings as they are told, a terminal
        that is quiet behind a router is woken by UDP and called; no datagram is tracked (E1, C3).
        """
        server, _, router = RULES
        with build(Router("A")) as lab:
            lab.run("server", "nft", "-f", "-", given=server)
            lab.run("routerA", "nft", "-f", "-", given=router)
            pki = Pki(lab.folder)
            account(lab.folder, "Ia", "Ib")
            start_mediator(lab, pki)
            mediator = f"--mediator=tls:{SERVER}:1202"
            options = (mediator, f"--ca={pki.ca}", password_file(lab.folder))
            terminal = start_terminal(lab, *options)
            terminal.wait_for("Seen from outside at")
            terminal.wait_for("Idle: closing the connection")
            (lab.folder / "song").write_text("music")
            caller = ("call", "--verbose", "--as=Ia", "Ib", "--send", str(lab.folder / "song"))
            done = lab.start("outside", *BROKER, *caller, *options)
            assert done.wait() == 0, done.said
            assert f"connected directly at {lab.address('routerA')}:1203" in done.said
            terminal.wait_for("Woken: connecting to the mediator")
            assert lab.run("server", "conntrack", "-L", "-p", "udp").stdout == ""
            assert "tcp" in lab.run("server", "conntrack", "-L").stdout


def start_mediator(lab: Lab, pki: Pki) -> Running:
    """A mediator with the settings of the page, and its port for datagrams open."""
    own = pki.server(SERVER)
    told = block("toml", "### Settings")
    told = told.replace("/etc/broker/server.pem", str(own.certificate))
    told = told.replace("/etc/broker/server.key", str(own.key))
    (lab.folder / "broker.toml").write_text(f'{told}udp = "1200"\nudp-interval = 1\n')
    mediator = lab.start("server", *TWISTD, "-n", "broker", "--config=broker.toml")
    mediator.wait_for("Listening for datagrams on 0.0.0.0:1200")
    return mediator


def start_terminal(lab: Lab, *options: str) -> Running:
    """The terminal that lets its connection go, as the page starts it."""
    line = block("sh", "## Terminals behind routers").splitlines()[1]
    words = iter(shlex.split(line))
    kept = [word for word in words if word not in ("--mediator", "--ca") or not next(words)]
    (lab.folder / "inbox").mkdir()
    return lab.start("hostA1", *TWISTD, *kept[1:], "--accept=Ia", "--linger=0.5", *options)


# Settings and commands.


class SettingsTests:
    """What is shown of settings and commands."""

    @pytest.mark.parametrize("role", ["mediator", "resolver"])
    def test_resolver_apart(
        self, role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The two files of a resolver that is apart are good (A15)."""
        pki = Pki(tmp_path)
        text = block(role, "### A resolver apart")
        shutil.copy(pki.ca, tmp_path / "authority.pem")
        for name in re.findall(r'"(.+)\.key"', text):
            made = pki.mediator("east") if name == "mediator-east" else pki.server("localhost")
            shutil.copy(made.certificate, tmp_path / f"{name}.pem")
            shutil.copy(made.key, tmp_path / f"{name}.key")
        (tmp_path / "role.toml").write_text(text)
        monkeypatch.chdir(tmp_path)
        ROLES[role]().parseOptions(["--config=role.toml"])

    def test_terminals(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The commands that start terminals behind routers are understood."""
        shutil.copy(Pki(tmp_path).ca, tmp_path / "authority.pem")
        (tmp_path / "inbox").mkdir()
        monkeypatch.chdir(tmp_path)
        found = block("sh", "## Terminals behind routers").splitlines()
        held = []
        for line in found:
            options = terminal.Options()
            options.parseOptions(shlex.split(line)[3:])
            assert options["udp"] == (None, 1200)
            held.append(not options["no-hold"])
        assert held == [True, False]

    def test_defaults(self) -> None:
        """Intervals are those that the roles have."""
        told = section("### What keepalives cost")
        assert f"`--udp-interval`, {setting('mediator', 'udp-interval').default} s" in told
        assert f"`--keepalive-most`, {setting('terminal', 'keepalive-most').default} s" in told


# The log.


@cache
def texts() -> list[list[str]]:
    """The texts of the code, what it logs and counts among them, parted where they have fields."""
    found = []
    for path in sorted((ROOT / "broker").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = _FIELD.split(node.value)
                if sum(map(len, parts)) >= _OWN_LEAST:
                    found.append(parts)
    return found


def like(parts: list[str]) -> re.Pattern[str]:
    """What has these parts, and anything between them."""
    return re.compile(".*".join(map(re.escape, parts)), re.S)


def quoted() -> list[str]:
    """All that is quoted of the log in the tables that tell of it."""
    headings = ("### What the log says", "### What its log says")
    firsts = [row[0] for heading in headings for row in rows(heading)]
    lines = [one for first in firsts for one in re.findall(r"`([^`]+)`", first)]
    # The code puts these lines together; that they are said is seen where a role is started.
    return [line for line in lines if not line.startswith("Listening")]


def test_both_tables_are_found() -> None:
    """Lines of both tables of the log are among those that are compared."""
    assert {"TLS with 192.0.2.9 failed: …", "Woken: connecting to the mediator"} <= set(quoted())


class LogTests:
    """What the page says that the log says."""

    @pytest.mark.parametrize("line", quoted())
    def test_quoted(self, line: str) -> None:
        """Each line that is quoted is one that the code has."""
        pattern, shown = like(line.split(_ANYTHING)), line.replace(_ANYTHING, "x")
        assert any(
            like(parts).fullmatch(shown) or pattern.fullmatch("x".join(parts)) for parts in texts()
        )
