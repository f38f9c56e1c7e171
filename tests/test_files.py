"""Files: written as a whole or not at all, and read only where others cannot change them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from broker.files import (
    PRIVATE,
    InvalidFile,
    check_private_folder,
    exposure,
    read_private,
    write_file,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file that is written."""
    return tmp_path / "key"


def mode_of(path: Path) -> int:
    """What may be done with a file, and by whom."""
    return stat.S_IMODE(path.stat().st_mode)


class WritingTests:
    """Files are written whole, or not at all."""

    @pytest.mark.parametrize("mode", [PRIVATE, 0o644])
    def test_mode(self, path: Path, mode: int) -> None:
        """A private file is private from its first moment, whatever the umask (I18)."""
        before = os.umask(0)
        try:
            write_file(path, b"x", mode=mode)
            write_file(path.with_name("usual"), b"x")
        finally:
            os.umask(before)
        assert (mode_of(path), mode_of(path.with_name("usual"))) == (mode, 0o644)

    def test_replace(self, path: Path) -> None:
        """What is there stays, unless it may be replaced; a replaced key is private at once."""
        path.write_bytes(b"old")
        with pytest.raises(InvalidFile, match="already exists"):
            write_file(path, b"new")
        assert path.read_bytes() == b"old"
        write_file(path, b"new", mode=PRIVATE, replace=True)
        assert (path.read_bytes(), mode_of(path)) == (b"new", 0o600)
        assert list(path.parent.iterdir()) == [path]

    def test_failure(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the disk fails the old file is whole and nothing is left over (I9)."""
        path.write_bytes(b"old")

        def fail(descriptor: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output"):
            write_file(path, b"new", replace=True)
        assert list(path.parent.iterdir()) == [path]
        assert path.read_bytes() == b"old"


class ReadingTests:
    """What others could have changed or read is refused."""

    @pytest.mark.parametrize(
        ("mode", "owner", "user", "good"),
        [
            (0o600, 7, 7, True),
            (0o400, 7, 7, True),
            (0o640, 7, 7, False),
            (0o600, 8, 7, False),
            (0o400, 0, 7, True),
            (0o640, 0, 7, True),
            (0o440, 0, 7, True),
            (0o660, 0, 7, False),
            (0o644, 0, 7, False),
            (0o600, 0, 0, True),
            (0o640, 0, 0, False),
            (0o600, 7, 0, False),
        ],
    )
    def test_exposure(self, mode: int, owner: int, user: int, good: bool) -> None:
        """Root may hand a key to a server's group; nobody else may share one."""
        assert (exposure(stat.S_IFREG | mode, owner, user) is None) == good

    def test_what_it_is(self, tmp_path: Path) -> None:
        """A pipe or a folder is refused, and nothing waits for it. A symbolic link is followed,
        unless it must not be.
        """
        pipe, key, link = tmp_path / "pipe", tmp_path / "key", str(tmp_path / "link")
        os.mkfifo(pipe)
        with pytest.raises(InvalidFile, match="pipe: not a regular file"):
            read_private(str(pipe), 9)
        with pytest.raises((InvalidFile, IsADirectoryError)):
            read_private(str(tmp_path), 9)
        write_file(key, b"secret", mode=PRIVATE)
        os.symlink("key", link)
        assert read_private(link, 4) == b"secr"
        with pytest.raises(OSError, match="symbolic links"):
            read_private(link, 4, follow=False)

    def test_folder(self, tmp_path: Path) -> None:
        """A folder that others can look into is refused, with what to do."""
        tmp_path.chmod(0o710)
        with pytest.raises(InvalidFile, match="others can look into it: chmod 700"):
            check_private_folder(tmp_path)
        tmp_path.chmod(0o700)
        check_private_folder(tmp_path)
