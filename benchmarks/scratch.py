"""Where databases are kept that are measured: on a disk, since elsewhere a sync costs nothing."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Final

import psutil

#: File systems that keep nothing: they have nowhere to sync to.
IN_MEMORY: Final = frozenset({"tmpfs", "ramfs", "devtmpfs"})
#: Syncs of which the median is taken.
SYNCS: Final = 20


def file_system(folder: Path) -> str:
    """The type of the file system that a folder lies on, as the system calls it."""
    at = Path(os.path.realpath(folder))
    while not at.is_mount():
        at = at.parent
    types = {mount.mountpoint: mount.fstype for mount in psutil.disk_partitions(all=True)}
    return types.get(str(at)) or "unknown"


def scratch_folder() -> Path:
    """The folder for temporary files; that for larger ones, should the first be in memory."""
    folder = Path(tempfile.gettempdir())
    larger = Path("/var/tmp")
    if file_system(folder) in IN_MEMORY and larger.is_dir():
        return larger
    return folder


def sync_time(folder: Path) -> float:
    """Seconds that it takes there to append a page to a file and sync it."""
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(SYNCS):
            begun = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - begun)
    return median(times)
