"""``broker permit`` with a terminal's own file; with a mediator: ``test_terminal``."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.cli import main as cli
from broker.cli import permits


class OwnFileTests:
    """A terminal's own file, edited in the words of the mediator's list (C4, C5)."""

    @pytest.fixture(autouse=True)
    def alone(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """No reactor, nobody to ask, and no password looked for."""
        monkeypatch.delattr(permits, "run_at_mediator")
        self.file = tmp_path / "Ib.consent"

    def permit(self, change: str, *more: str) -> int:
        """Change or list the file; the status."""
        return cli.main(["permit", change, f"--local={self.file}", *more])

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ("add Ia @family", "+ Ia\n+ @family\n"),
            ("reject Ix", "- Ix\n"),
            ("add Ia, reject Ia", "+ Ia\n- Ia\n"),
            ("add Ia, reject Ia, unreject Ia", "+ Ia\n"),
            ("add Ia Ib, reject Ia, delete Ia Ib", "- Ia\n"),
            ("add Ia, unreject Ia", "+ Ia\n"),
            ("reject Ia, delete Ia", "- Ia\n"),
            ("add Ia, delete Ia", ""),
        ],
    )
    def test_changes(self, changes: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Two lists, each changed by two words; the file is made, for its user alone."""
        for change in changes.split(", "):
            assert self.permit(*change.split()) == 0
            assert capsys.readouterr() == (f"{self.file} is changed\n", "")
        assert self.file.read_text() == expected
        assert self.file.stat().st_mode & 0o777 == 0o600
        assert self.permit("list") == 0
        assert capsys.readouterr() == (expected, "")

    def test_added_though_rejected(self, capsys: pytest.CaptureFixture[str]) -> None:
        """To be rejected wins: adding such a caller says so, and how to take it back (C5)."""
        self.permit("reject", "Ix", "Iy")
        capsys.readouterr()
        assert self.permit("add", "Ix", "Ia") == 0
        assert self.file.read_text() == "- Ix\n- Iy\n+ Ix\n+ Ia\n"
        assert capsys.readouterr().err == (
            "broker: Ix stays rejected in this file, which wins:"
            f" broker permit unreject --local {self.file} Ix\n"
        )

    def test_fails(self, capsys: pytest.CaptureFixture[str]) -> None:
        """What is bad, or can't be had, is status 1 and a line; a bad file stays as it is."""
        for change in (["list"], ["delete", "Ia"], ["unreject", "Ia"]):
            assert self.permit(*change) == 1
            assert capsys.readouterr().err == f"broker: {self.file}: No such file or directory\n"
            assert not self.file.exists()
        self.file.write_text("+ Ia\nIb\n")
        self.file.chmod(0o600)
        assert self.permit("delete", "Ia") == 1
        assert ": line 2: begins with neither" in capsys.readouterr().err
        assert self.file.read_text() == "+ Ia\nIb\n"
        self.file = self.file / "under"
        assert self.permit("add", "Ia") == 1
        assert capsys.readouterr() == ("", f"broker: {self.file}: Not a directory\n")

    def test_interrupted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who gives up waiting for another's edit ends it as any command."""

        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(permits, "edit_file", interrupted)
        assert self.permit("add", "Ia") == 130

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ("add Ia --as Ib", "not allowed with argument --local"),
            ("add Ia --expires 60", "--expires can't be used with --local: a file has no limits"),
            ("add Ia --uses 1", "--uses can't be used with --local: a file has no limits"),
            ("list --plain", "--plain can't be used with --local"),
            ("add Ia --mediator tcp:127.0.0.1:1201", "--mediator can't be used with --local"),
            ("list --ca x", "--ca can't be used with --local"),
            (f"list --pin {'0' * 64}", "--pin can't be used with --local"),
            ("list --revocation-list x", "--revocation-list can't be used with --local"),
            ("list --certificate x", "--certificate can't be used with --local"),
            ("list --private-key x", "--private-key can't be used with --local"),
            ("reject Ia --password-file x", "--password-file can't be used with --local"),
            ("unreject Ia --allow-clear-text", "--allow-clear-text can't be used with --local"),
            ("delete Ia --trace", "--trace can't be used with --local: no mediator is involved"),
            ("add", "required: ID"),
            ("add Ia;uses=1", "a comma or a semicolon"),
            ("create Ia", "create is for a mediator's list (--as ID); a file is changed by add,"),
            ("create --as Ib Ia", "create is for a mediator's list"),
            ("policy ask", "a terminal with a file is started with --policy ask"),
        ],
    )
    def test_wrong(self, line: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
        """What only a mediator knows is wrong usage, which says what to do; nothing is made."""
        with pytest.raises(SystemExit) as wrong:
            self.permit(*line.split())
        assert wrong.value.code == 2
        assert why in capsys.readouterr().err
        assert not self.file.exists()

    @pytest.mark.parametrize("line", ["create --as Ib Ia", "policy --as Ib ask", "list --as Ib"])
    def test_without(self, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """All that has no ``--local`` goes to the mediator."""
        done: list[object] = []
        monkeypatch.setattr(
            permits, "run_at_mediator", lambda *_: done.append("run"), raising=False
        )
        assert cli.main(["permit", *line.split()]) == 0
        assert done == ["run"]
