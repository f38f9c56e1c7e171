"""A machine of its own that runs systemd, made of namespaces.

It has its own processes, network, mounts, ``/etc``, ``/var``, ``/run`` and ``/tmp``, and sees the
rest of the file system as it is. It ends with the process that began it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from types import TracebackType
from typing import Final

import psutil

from tests.support.processes import PATIENCE, ROOT, TETHER

SYSTEMD: Final = "/lib/systemd/systemd"
#: The Python that a service can see: one in a home folder is hidden from it.
PYTHON: Final = "/usr/bin/python3"
#: Where the product is installed there, as the units say.
PREFIX: Final = "/opt/broker"
_NEEDED: Final = ("unshare", "nsenter", "mount", "ip", "systemctl")
_SPACES: Final = ("--pid", "--mount", "--cgroup", "--uts", "--ipc", "--net")

#: What the first process runs: its arguments are the folder, the checkout and the packages.
_BOOT: Final = r"""
set -eu
lab=$1 root=$2 packages=$3
mount --make-rprivate /
mount -t tmpfs tmpfs /opt
mkdir -p /opt/lab /opt/root /opt/packages /opt/broker/bin /opt/broker/lib/VERSION/site-packages
mount --bind "$lab" /opt/lab
mount --bind "$root" /opt/root
mount --bind "$packages" /opt/packages
mkdir /opt/etc
for file in ld.so.cache ld.so.conf ld.so.conf.d localtime login.defs nsswitch.conf pam.d protocols \
    security services ssl; do
    [ ! -e "/etc/$file" ] || cp -a "/etc/$file" /opt/etc/
done
for folder in /run /tmp /var /etc; do mount -t tmpfs -o mode=755 tmpfs $folder; done
cp -a /opt/etc/. /etc/
printf '%s\n' root:x:0:0::/root:/bin/sh broker:x:990:990::/:/bin/false \
    nobody:x:65534:65534::/:/bin/false > /etc/passwd
printf 'root:x:0:\nbroker:x:990:\nnogroup:x:65534:\n' > /etc/group
printf '127.0.0.1 localhost signal.example.com\n' > /etc/hosts
chmod 1777 /tmp
mkdir -p /var/lib /var/tmp /run/systemd/system
ip link set lo up
ln -s PYTHON /opt/broker/bin/python
printf 'home = /usr/bin\n' > /opt/broker/pyvenv.cfg
printf '/opt/root\n/opt/packages\n' > /opt/broker/lib/VERSION/site-packages/broker.pth
printf '%s\n' '#!/opt/broker/bin/python' 'from twisted.scripts.twistd import run' 'run()' \
    > /opt/broker/bin/twistd
printf '%s\n' '#!/opt/broker/bin/python' 'import sys' 'from broker.cli.main import main' \
    'sys.exit(main())' > /opt/broker/bin/broker
chmod 755 /opt/broker/bin/twistd /opt/broker/bin/broker
cp -r /opt/lab/etc/. /etc/
cp -r /opt/lab/units/. /run/systemd/system/
chown -R root:broker /etc/broker
printf '[Unit]\nDescription=the lab\nDefaultDependencies=no\n' > /run/systemd/system/lab.target
export container=lab
exec SYSTEMD --system --unit=lab.target --log-target=console --log-level=info
"""


def lacking() -> str:
    """Why there can be no such machine here; the empty text where there can."""
    for program in _NEEDED:
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if not Path(SYSTEMD).exists():
        return "systemd is not installed"
    if os.getuid() != 0:
        return "only root can make namespaces that systemd runs in"
    if not os.access(PYTHON, os.X_OK):
        return f"there is no {PYTHON}"
    asked = "import sys; print('%d.%d' % sys.version_info[:2])"
    if _ask(PYTHON, "-c", asked).stdout.strip() != _version():
        return f"{PYTHON} is another Python than that of the packages"
    tried = ("unshare", "--fork", *_SPACES, "--mount-proc", "mount", "-t", "tmpfs", "tmpfs", "/run")
    return _ask(*tried).stderr.strip()


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


class Machine:
    """The machine, from its start to its end.

    :ivar folder: ``/opt/lab`` there: what it is given in ``etc`` and ``units``, and what it leaves
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "etc" / "broker").mkdir(parents=True)
        (folder / "units").mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    def unit(self, path: Path, *, output: str) -> None:
        """Install a unit as it is; what a service writes goes to a file of the folder.

        :param output: the file's name
        """
        shutil.copy(path, self.folder / "units")
        changes = self.folder / "units" / f"{path.name}.d"
        changes.mkdir()
        # There is no journal there, and nothing else has to be up first.
        service = f"[Service]\nStandardOutput=append:/opt/lab/{output}\nStandardError=inherit\n"
        (changes / "lab.conf").write_text(
            "[Unit]\nDefaultDependencies=no\n" + (service if path.suffix == ".service" else "")
        )

    def __enter__(self) -> Machine:
        script = (
            _BOOT.replace("VERSION", f"python{_version()}")
            .replace("PYTHON", PYTHON)
            .replace("SYSTEMD", SYSTEMD)
        )
        arguments = ["boot", str(self.folder), str(ROOT), sysconfig.get_paths()["purelib"]]
        with open(self.folder / "console", "wb") as console:
            unshare = ("unshare", "--fork", "--kill-child", *_SPACES, "--mount-proc")
            self._process = subprocess.Popen(
                [*TETHER, *unshare, "sh", "-c", script, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        self.wait_until("systemctl", "is-active", "lab.target")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.kill()  # and with it the first process there, and so all
            self._process.wait()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command there as root."""
        assert self._process is not None
        first = psutil.Process(self._process.pid).children()
        if not first:
            return subprocess.CompletedProcess(command, 255, "", "it has not begun")
        spaces = ("-p", "-m", "-C", "-u", "-i", "-n")
        return subprocess.run(
            ["nsenter", "-t", str(first[0].pid), *spaces, "--", *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def type(self, folder: str, lines: str) -> str:
        """Type lines into root's shell there; each must succeed.

        :param folder: where
        :return: all that they print
        """
        done = self.run("sh", "-exc", f"PATH={PREFIX}/bin:$PATH\ncd {folder}\n{lines}")
        assert done.returncode == 0, done.stdout + done.stderr + self.console()
        return done.stdout

    def wait_until(self, *command: str) -> None:
        """Run a command there until it succeeds."""
        deadline = time.monotonic() + PATIENCE
        while (done := self.run(*command)).returncode != 0:
            assert time.monotonic() < deadline, done.stdout + done.stderr + self.console()
            time.sleep(0.05)

    def said(self, output: str) -> str:
        """What has been written to a file of the folder so far."""
        path = self.folder / output
        return path.read_text() if path.exists() else ""

    def console(self) -> str:
        """What systemd said."""
        return self.said("console")


def _version() -> str:
    return "{}.{}".format(*sys.version_info[:2])
