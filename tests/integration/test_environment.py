"""The environment that the scripts of a checkout make for themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import PATIENCE, ROOT

pytestmark = pytest.mark.integration

#: A script of a checkout, as those in ``bin`` are.
SCRIPT = """\
set -eu
root=$(dirname -- "$(dirname -- "$0")")
. "$root/bin/_environment"
prepare_environment
echo prepared
"""
#: What stands in for Python: it makes no environment, but says that it was asked to.
PYTHON = """\
#!/bin/sh
case "$*" in *--clear*) echo cleared >>"$0.log" ;; esac
"""


class Checkout:
    """A checkout with an environment that is not ready for it."""

    def __init__(self, folder: Path) -> None:
        self.environment = folder / ".venv"
        self._script = folder / "bin" / "script"
        self._python = folder / "python"
        self.environment.mkdir()
        self._script.parent.mkdir()
        shutil.copy(ROOT / "bin" / "_environment", folder / "bin")
        self._script.write_text(SCRIPT)
        self._python.write_text(PYTHON)
        self._python.chmod(0o755)
        (folder / "setup.cfg").touch()

    def run(self, *before: str) -> tuple[int, str]:
        """Run the script; the status, and what it said on standard error."""
        done = subprocess.run(
            [*before, "sh", str(self._script)],
            env=os.environ | {"PYTHON": str(self._python)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return done.returncode, done.stderr

    def give_away(self) -> None:
        """Make the environment another user's."""
        if os.geteuid() == 0:
            os.chown(self.environment, 65534, -1)
        elif not any(self.environment.iterdir()):
            self.environment.rmdir()
            self.environment.symlink_to("/")  # the superuser's

    @property
    def cleared(self) -> bool:
        """Whether the environment was made again."""
        return self._python.with_name("python.log").exists()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """Whose environment was begun and is not ready."""
    return Checkout(tmp_path)


class OwnerTests:
    """Only the user that made an environment makes it again."""

    def test_of_another_user(self, checkout: Checkout) -> None:
        """That of another user is left alone; the user is told who can do what."""
        checkout.give_away()
        status, said = checkout.run()
        owner = checkout.environment.owner()
        assert status == 1
        assert f"{checkout.environment} cannot be used as it is, and belongs to {owner}" in said
        assert "Run " in said
        assert "Preparing" not in said
        assert not checkout.cleared

    def test_not_to_be_written(self, checkout: Checkout) -> None:
        """An own one that can't be written is not begun with."""
        before: tuple[str, ...] = ()
        if os.geteuid() == 0:  # who may write everything
            if shutil.which("setpriv") is None:
                pytest.skip("setpriv is not installed (Debian's package util-linux)")
            before = ("setpriv", "--bounding-set=-dac_override")
        checkout.environment.chmod(0o500)
        status, said = checkout.run(*before)
        assert status == 1
        assert f"{checkout.environment} cannot be used as it is, nor be written" in said
        assert not checkout.cleared

    @pytest.mark.parametrize("there", [True, False])
    def test_of_this_user(self, checkout: Checkout, there: bool) -> None:
        """An own one that does not work is made, and so is one that isn't there."""
        if not there:
            checkout.environment.rmdir()
        checkout.run()
        assert checkout.cleared

    def test_ready(self, checkout: Checkout) -> None:
        """One that is ready is used, whichever user made it."""
        (checkout.environment / "bin").mkdir()
        (checkout.environment / "bin" / "python").touch(0o755)
        (checkout.environment / "prepared-plain").write_text(str(checkout.environment.parent))
        checkout.give_away()
        checkout.environment.chmod(0o555)
        assert checkout.run() == (0, "")
        assert not checkout.cleared
