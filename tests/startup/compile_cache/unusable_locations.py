"""Makes a folder that cannot be a location of compiled models, in a folder that may not exist yet."""

import os
import subprocess
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def without_parent(location: Path) -> None:
    """Nothing is there."""


def file_instead(location: Path) -> None:
    location.parent.mkdir()
    location.write_text("text")


def of_another_user(location: Path) -> None:
    location.mkdir(parents=True)
    os.chown(location, 12345, 12345)


def writable_by_all(location: Path) -> None:
    location.mkdir(parents=True)
    location.chmod(0o777)


def full(location: Path) -> None:
    _mount(location, "size=64k")


def read_only(location: Path) -> None:
    _mount(location, "ro")


def unmount(location: Path) -> None:
    """After `full` and `read_only`; no effect after the others."""
    if os.path.ismount(location):
        subprocess.run(("umount", str(location)), check=True)


def _mount(location: Path, option: str) -> None:
    location.mkdir(parents=True)
    mount = ("mount", "-t", "tmpfs", "-o", f"mode=755,{option}", "tmpfs", str(location))
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
