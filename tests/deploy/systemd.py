"""Runs systemd as process 1 of its own namespaces, on a root folder whose changes are discarded."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

import psutil
import pytest

from tests.support.debian_tools import require_tool
from tests.support.waiting import wait_until

ROOT: Final = Path(__file__).parents[2]
_SYSTEMD: Final = Path("/lib/systemd/systemd")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_PLACES: Final = {"python": sys.base_prefix, "packages": sysconfig.get_path("purelib"), "source": str(ROOT)}
"""Folders that are mounted below /opt, because a unit's user may not enter this user's folders."""
_PROGRAM: Final = """#!/bin/sh
export PYTHONPATH=/opt/source:/opt/packages HF_HUB_OFFLINE=1
exec /opt/python/bin/python{version} -m vllm_cli "$@"
"""
_BOOT: Final = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$0"
cp -r "$1" "$0/upper"
mkdir "$0/work" "$0/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$0/upper,workdir=$0/work" "$0/root"
cd "$0/root"
mount -t proc proc proc
mount --rbind /dev dev
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup sys/fs/cgroup
mount -t tmpfs tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
shift
while [ "$1" != -- ]; do mount --bind "$1" "$2"; mount -o remount,bind,ro "$2"; shift 2; done
chroot . /sbin/ldconfig /opt/python/lib
exec chroot . /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=other SYSTEMD_UNIT_PATH=/etc/units \
  /lib/systemd/systemd --system --unit=multi-user.target --log-target=null --show-status=0
"""
_NAMESPACES: Final = ("--mount", "--pid", "--cgroup", "--uts", "--ipc", "--net")
_EMPTY_TARGETS: Final = ("basic", "multi-user", "network-online", "shutdown", "sockets", "sysinit")


class Systemd:
    """A running system manager. The end of the `with` block kills all its processes."""

    def __init__(self, folder: Path, files: Mapping[str, str], model: Path | None = None) -> None:
        """
        Args:
            folder: an empty folder.
            files: path below the root -> text. Units are in /etc/units.
            model: a folder of which /opt/model becomes a copy.
        """
        (folder / "mounts").mkdir()
        programs = _PROGRAM.format(version=sysconfig.get_python_version())
        targets = {f"/etc/units/{name}.target": "[Unit]\nDescription=empty\n" for name in _EMPTY_TARGETS}
        for path, text in {"/opt/vllm-cli/bin/vllm-cli": programs, **targets, **files}.items():
            file = folder / "files" / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o755)
        for name in _PLACES:
            (folder / "files" / "opt" / name).mkdir()
        if model:
            copy = Path(shutil.copytree(model, folder / "files" / "opt" / "model"))
            for path in (copy, *copy.iterdir()):
                path.chmod(0o755)
        self._folder = folder

    def __enter__(self) -> Self:
        self._cgroup = _own_cgroup()
        binds = [word for name, path in _PLACES.items() for word in (path, f"opt/{name}")]
        unshare = ["unshare", *_NAMESPACES, "--fork", "--kill-child"]
        boot = [*unshare, "sh", "-c", _BOOT, self._folder / "mounts", self._folder / "files", *binds, "--"]
        enter = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', self._cgroup]
        log = self._folder / "log"
        with log.open("w") as file:
            self._unshare = subprocess.Popen([*enter, *boot], stderr=file)
        try:
            wait_until(lambda: self._unshare.poll() is not None or self._is_up(), timeout_s=60)
        except BaseException:
            self.__exit__()
            raise
        if self._unshare.poll() is not None:
            self.__exit__()
            pytest.skip(f"systemd does not run in a namespace here: {log.read_text()}")
        return self

    def __exit__(self, *_: object) -> None:
        self._unshare.send_signal(signal.SIGKILL)
        self._unshare.wait()
        wait_until(self._remove_cgroups)

    def _remove_cgroups(self) -> bool:
        for place, _, _ in os.walk(self._cgroup, topdown=False):
            try:
                Path(place).rmdir()
            except OSError:  # a process in it has not ended yet
                return False
        return True

    def _is_up(self) -> bool:
        try:
            [init] = psutil.Process(self._unshare.pid).children()
            if init.name() != _SYSTEMD.name:
                return False
        except (ValueError, psutil.Error):  # it has not begun, or has failed
            return False
        self._init = init.pid
        return self.run("systemctl", "is-active", "multi-user.target").stdout == "active\n"

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command as root in the manager's namespaces."""
        enter = ["nsenter", f"--target={self._init}", *_NAMESPACES, "--root", "--wd"]
        return subprocess.run([*enter, *words], capture_output=True, text=True, timeout=300)

    def start(self, *units: str) -> subprocess.CompletedProcess[str]:
        """Starts units. Returns once they are ready."""
        return self.run("systemctl", "start", *units)

    def show(self, unit: str, name: str) -> str:
        """The value of a unit's property."""
        return self.run("systemctl", "show", f"--property={name}", "--value", unit).stdout.strip()

    def main_pid(self, unit: str) -> int:
        """The process id of a service's main process, in this process's namespace."""
        inner = self.show(unit, "MainPID")
        processes = psutil.Process(self._unshare.pid).children(recursive=True)
        [pid] = [process.pid for process in processes if _innermost_pid(process.pid) == inner]
        return pid


def _own_cgroup() -> Path:
    """Creates a cgroup that is the root of all cgroups for systemd."""
    parents = [mount for mount in (_CGROUPS / "unified", _CGROUPS) if (mount / "cgroup.procs").exists()]
    require_tool("systemctl")
    if os.geteuid() != 0 or not parents:
        pytest.skip("needs root and cgroups of version 2")
    if unreadable := [path for path in _PLACES.values() if Path(path).stat().st_mode & 0o5 != 0o5]:
        pytest.skip(f"other users may not read {unreadable}")
    cgroup = parents[0] / f"vllm-cli-test-{os.getpid()}"
    cgroup.mkdir()
    return cgroup


def _innermost_pid(pid: int) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith("NSpid:")).split()[-1]
