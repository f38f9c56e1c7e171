"""The units in ``etc/systemd``: they start under a real systemd, and give away little."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.machine import PREFIX, Machine, lacking
from tests.integration.processes import ROOT

pytestmark = pytest.mark.integration

UNITS = sorted((ROOT / "etc" / "systemd").glob("*.service"))


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
            assert f"ExecStart={PREFIX}/bin/twistd " in unit.read_text()
