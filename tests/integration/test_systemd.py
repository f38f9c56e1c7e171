"""The units in ``etc/systemd``: they start under a real systemd, and give away little."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.integration.machine import PREFIX, Machine, lacking
from tests.integration.site import program
from tests.support.processes import ROOT

#: Slow: a machine with systemd is booted in namespaces.
pytestmark = [pytest.mark.integration, pytest.mark.slow]

FOLDER: Final = ROOT / "etc" / "systemd"
UNITS: Final = sorted(FOLDER.glob("*.service"))
#: What docs/operations.md has typed, and where: whom to carry files between is told in words.
_SECTION: Final = "From nothing to the open Internet"
_BLOCK: Final = re.compile(r"^```(toml|authority|server|terminal)\n(.*?)^```", re.M | re.S)
_PLACES: Final = {"authority": "/tmp/authority", "server": "/etc/broker", "terminal": "/tmp/user"}
_CARRIED: Final = """
[ ! -e /etc/broker/server.csr ] || cp /etc/broker/server.csr /tmp/authority
[ ! -e /tmp/authority/server.pem ] || cp /tmp/authority/server.pem /etc/broker
[ ! -e /tmp/authority/ca ] || cp /tmp/authority/ca/authority.pem /tmp/user
"""
#: What is said once something typed has come about: (typed, the file that it is said in, words).
_SAYS: Final = (
    ("enable --now broker\n", "broker.log", "Listening for TLS on 0.0.0.0:1202"),
    ("broker-terminal", "ib.log", "Ib is registered"),
    ("systemctl reload", "broker.log", "The certificates were read again"),
    ("account reset Ib", "ib.log", "Registration Failed"),
)
_SERIAL: Final = "openssl s_client -connect localhost:1202 </dev/null | openssl x509 -noout -serial"


@pytest.fixture(scope="module")
def machine_lacks() -> str:
    """Why there can be no machine here."""
    return lacking()


@pytest.fixture
def machine(tmp_path: Path, machine_lacks: str) -> Machine:
    """A machine that is not started yet."""
    if machine_lacks:
        pytest.skip(machine_lacks)
    return Machine(tmp_path)


class UnitsTests:
    """What the units promise."""

    @pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
    @pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
    def test_exposure(self, unit: Path) -> None:
        """What a unit leaves open is rated below 2.0 by systemd itself."""
        rated = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
            capture_output=True,
            text=True,
            check=False,
        )
        found = re.search(rf"Overall exposure level for {unit.name}: ([0-9.]+)", rated.stdout)
        assert found, rated.stdout + rated.stderr
        assert float(found[1]) < 2.0

    def test_mediator_starts(self, machine: Machine) -> None:
        """The mediator's unit starts, reads its certificates again, and stops in good order."""
        machine.unit(ROOT / "etc" / "systemd" / "broker.service", output="broker.log")
        (machine.folder / "etc" / "broker" / "broker.toml").write_text("")
        with machine:
            started = machine.run("systemctl", "start", "broker.service")
            assert started.returncode == 0, machine.console()
            machine.wait_until("grep", "-q", "Listening on 127.0.0.1:1201", "/opt/lab/broker.log")
            owner = machine.run(
                "stat", "-c", "%U %a", "/var/lib/broker", "/var/lib/broker/broker.db"
            )
            assert owner.stdout.split("\n")[:2] == ["broker 700", "broker 600"]
            stopped = machine.run("systemctl", "stop", "broker.service")
            assert stopped.returncode == 0, machine.console()
            show = machine.run(
                "systemctl", "show", "-P", "Result", "-P", "ExecMainStatus", "broker"
            )
            assert show.stdout.split() == ["success", "0"]
        assert "Traceback" not in machine.said("broker.log")

    def test_prefix(self) -> None:
        """All units run the product from one place."""
        for unit in UNITS:
            (command,) = re.findall(r"^ExecStart=(.*)", unit.read_text(), re.M)
            assert f"{PREFIX}/bin/" in command


def blocks() -> list[tuple[str, str]]:
    """What the section has typed: for whom, and the lines."""
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    section = page.partition(f"\n## {_SECTION}\n")[2].partition("\n## ")[0]
    return _BLOCK.findall(section)


class Newcomer:
    """Somebody who does what the section says, and carries the files."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._passwords: dict[str, str] = {}
        machine.type("/tmp", "mkdir authority user; printf music > user/song.wav")

    def does(self, who: str, lines: str) -> str:
        """Type a block of lines.

        :return: all that they print
        """
        if "broker-terminal" in lines:  # goes on running, in a window of its own
            lines = f"{lines.strip()} >/opt/lab/ib.log 2>&1 &"
        for name, password in self._passwords.items():  # which would be asked for
            login = f"broker login --as {name} "
            lines = lines.replace(login, f"{login} --password-file {name}.password ")
            self._machine.type(
                _PLACES["terminal"],
                f"umask 077; printf '%s\\n' {shlex.quote(password)} > {name}.password",
            )
        printed = self._machine.type(_PLACES[who], lines)
        for name, password in re.findall(
            r"^(\w+) has an account\nIts password, .*: (.+)$", printed, re.M
        ):
            self._passwords[name] = password
        self._machine.type("/tmp", _CARRIED)
        return printed


class OperationsTests:
    """The way from nothing to the open Internet, as docs/operations.md tells it."""

    def test_the_whole_way(self, machine: Machine) -> None:
        """Every block for authority, server and terminals works as it stands there, in its order:
        logins over TLS, a call, a backup, a renewed certificate, another password (A19, A21, I2).
        """
        program("openssl")
        for unit in FOLDER.iterdir():
            machine.unit(unit, output=f"{unit.stem}.log")
        told = blocks()
        (settings,) = [lines for who, lines in told if who == "toml"]
        (machine.folder / "etc" / "broker" / "broker.toml").write_text(settings)
        printed, serials = "", []
        with machine:
            newcomer = Newcomer(machine)
            for who, lines in told:
                if who == "toml":
                    continue
                if "systemctl reload" in lines:
                    serials.append(machine.type("/tmp", _SERIAL))
                printed += newcomer.does(who, lines)
                for done, output, said in _SAYS:
                    if done in lines:
                        machine.wait_until("grep", "-q", said, f"/opt/lab/{output}")
                if "systemctl reload" in lines:
                    serials.append(machine.type("/tmp", _SERIAL))
            assert re.search(r"^Ib has 5 bytes, SHA-256 ", printed, re.M)
            assert re.search(r"Z\tIa\t127.0.0.1:1203\tIa\t", printed)
            assert len(set(serials)) == 2
            assert machine.type("/tmp/user", "cat inbox/*") == "music"
            kept = machine.type("/var/lib/broker-backup", "stat -c '%U %a' ?.db")
            assert kept == "broker 600\n"
            machine.type("/tmp", "systemctl stop broker")
            result = machine.type("/tmp", "systemctl show -P Result -P ExecMainStatus broker")
            assert result.split() == ["success", "0"]
        assert "Traceback" not in machine.said("broker.log")
