"""Fixtures: real files on a disk, and a folder with fake files of /proc and of cgroups."""

from pathlib import Path

import pytest

from tests.startup.files.prefetch.conftest import make_file  # noqa: F401 - a fixture


class FakeSystem:
    """A fake machine with 16 MB of memory, 8 MB of it available. `mount` and `limit` make cgroups."""

    controller = "memory"

    def __init__(self, root: Path) -> None:
        self.proc = root / "proc"
        self.mount_point = root / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.mount_point.mkdir()
        (self.proc / "meminfo").write_text("MemTotal: 16000 kB\nMemFree: 1 kB\nMemAvailable: 8000 kB\n")

    def mount(self, kind: str, options: str, *, root: str, path: str) -> None:
        line = f"31 23 0:28 {root} {self.mount_point} rw - {kind} {kind} {options}\n"
        (self.proc / "self" / "mountinfo").write_text("1 0 8:1 / / rw - ext4 /dev/vda rw\n" + line)
        (self.proc / "self" / "cgroup").write_text(f"9:name=systemd:/\n{path}\n")

    def limit(self, folder: str, **files: object) -> None:
        target = self.mount_point / folder
        target.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (target / f"{self.controller}.{name}").write_text(f"{value}\n")


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return FakeSystem(tmp_path)
