"""The terminal's settings about its call password."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import execute

from broker.service.terminal import Options, TerminalService
from tests.support.reactor import FakeReactor

SECRET = "open sesame"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of a call password."""
    path = tmp_path / "Ib.call"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    return path


def settle(*arguments: str) -> Options:
    """A terminal's options."""
    options = Options()
    options.parseOptions(["--identifier=Ib", *arguments])
    return options


def refused(*arguments: str) -> str:
    """Why a terminal does not start."""
    with pytest.raises(SystemExit) as raised:
        settle(*arguments)
    return str(raised.value)


class SettingsTests:
    """What goes with what, and what is refused at the start (I3)."""

    def test_both(self, file: Path) -> None:
        """The policy and the file go together: neither does anything alone."""
        alone = refused("--policy=password")
        assert "--policy: password needs a call-password-file" in alone
        for policy in ([], ["--policy=list"]):
            other = refused(f"--call-password-file={file}", *policy)
            assert "--call-password-file: goes with the policy password" in other

    def test_readable_by_others(self, file: Path) -> None:
        """A file that others can read is refused (I18)."""
        file.chmod(0o640)
        said = refused("--policy=password", f"--call-password-file={file}")
        assert f"{file}: others can read or change it" in said

    def test_empty(self, file: Path) -> None:
        """An empty password is none."""
        file.write_text("\n")
        said = refused("--policy=password", f"--call-password-file={file}")
        assert f"{file}: holds no password" in said

    def test_what_is_no_policy(self) -> None:
        """A word that is none of the three."""
        assert "'secret' is neither list nor ask nor password" in refused("--policy=secret")

    def test_they_reach_the_terminal(self, file: Path) -> None:
        """The file is read each time; networks are those that were named (D7)."""
        options = settle(
            "--policy=password", f"--call-password-file={file}", "--call-back-to=10.0.0.0/8"
        )
        reactor: Any = FakeReactor()
        terminal = TerminalService(reactor, options, execute).terminal
        comings = terminal._dial_back
        assert comings._allowed == [ip_network("10.0.0.0/8")]
        admits: Any = comings._admits
        assert admits("Ia", SECRET)
        file.write_text("another\n")
        assert not admits("Ia", SECRET)
        assert admits("Ia", "another")

    def test_none(self) -> None:
        """Without, nobody is called back (I3)."""
        reactor: Any = FakeReactor()
        terminal = TerminalService(reactor, settle(), execute).terminal
        assert terminal._dial_back._admits is None
