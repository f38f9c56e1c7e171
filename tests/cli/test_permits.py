"""``broker permit`` with a terminal's own file; with a mediator: ``test_terminal``."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.cli import mediator, permits
from tests.cli.shell import Done, Shell


class OwnFileTests:
    """A terminal's own file, edited in the words of the mediator's list (C4, C5)."""

    @pytest.fixture(autouse=True)
    def alone(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shell: Shell) -> None:
        """A file, and no mediator."""
        monkeypatch.delattr(mediator, "run_at_mediator")
        self.file = tmp_path / "Ib.consent"
        self.shell = shell

    def permit(self, line: str) -> Done:
        """Change or list the file."""
        change, _, arguments = line.partition(" ")
        return self.shell(f"permit {change} --local={self.file} {arguments}")

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
    def test_changes(self, changes: str, expected: str) -> None:
        """Two lists, each with two commands; the file is made, for its user only."""
        for change in changes.split(", "):
            assert self.permit(change) == (0, f"{self.file} is changed\n", "")
        assert self.file.read_text() == expected
        assert self.file.stat().st_mode & 0o777 == 0o600
        assert self.permit("list") == (0, expected, "")

    def test_added_though_rejected(self) -> None:
        """To be rejected wins: adding such a caller says so, and how to take it back (C5)."""
        self.permit("reject Ix Iy")
        added = self.permit("add Ix Ia")
        assert added.status == 0
        assert self.file.read_text() == "- Ix\n- Iy\n+ Ix\n+ Ia\n"
        assert added.err == (
            "broker: Ix stays rejected in this file, which wins:"
            f" broker permit unreject --local {self.file} Ix\n"
        )

    def test_fails(self) -> None:
        """An error is status 1 and a line; an invalid file is not changed."""
        for change in ("list", "delete Ia", "unreject Ia"):
            missing = f"broker: {self.file}: No such file or directory\n"
            assert self.permit(change) == (1, "", missing)
            assert not self.file.exists()
        self.file.write_text("+ Ia\nIb\n")
        self.file.chmod(0o600)
        invalid = self.permit("delete Ia")
        assert invalid.status == 1
        assert ": line 2: begins with neither" in invalid.err
        assert self.file.read_text() == "+ Ia\nIb\n"
        self.file = self.file / "under"
        assert self.permit("add Ia") == (1, "", f"broker: {self.file}: Not a directory\n")

    def test_interrupted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A person who gives up waiting for another edit interrupts the command."""

        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(permits, "edit_file", interrupted)
        assert self.permit("add Ia").status == 130

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
    def test_wrong(self, line: str, why: str) -> None:
        """What only a mediator knows is wrong usage, which says what to do; no file is made."""
        done = self.permit(line)
        assert done.status == 2
        assert why in done.err
        assert not self.file.exists()

    @pytest.mark.parametrize("line", ["create --as Ib Ia", "policy --as Ib ask", "list --as Ib"])
    def test_without(self, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without ``--local``, the command goes to the mediator."""
        ran: list[object] = []
        monkeypatch.setattr(mediator, "run_at_mediator", lambda *_: ran.append(1), raising=False)
        assert self.shell(f"permit {line}").status == 0
        assert ran == [1]
