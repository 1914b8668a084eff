"""Units with lines of the shipped ones, under a real systemd."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deploy.shipped import DEPLOY
from tests.deploy.systemd import Systemd
from tests.startup.vllm.fake_start import short_folder

pytestmark = pytest.mark.thorough
_UNITS = {path.name: path.read_text() for path in (DEPLOY / "systemd").iterdir()}
_OFF = re.findall(r"^(\w+)=no$", _UNITS["warm.conf"], re.MULTILINE)
"""What costs a unit the warm start."""


@contextmanager
def _systemd(files: dict[str, str], model: Path | None = None) -> Iterator[Systemd]:
    with short_folder() as folder, Systemd(folder, files, model) as manager:
        yield manager


def _namespaces(pid: int) -> dict[str, str]:
    return {
        name: str(Path(f"/proc/{pid}/ns/{name}").readlink())
        for name in ("mnt", "uts", "ipc", "net", "user", "pid", "cgroup")
    }


def test_each_line_that_the_drop_in_turns_off_would_cost_the_warm_start():
    """Even in both units, and with JoinsNamespaceOf=: each process gets a namespace of its own."""
    shipped = dict(re.findall(r"^(\w+)=(.*)$", _UNITS["vllm-cli.service"], re.MULTILINE))
    files = {
        f"/etc/units/{name}-{setting}.service": "\n".join(
            [
                "[Unit]",
                f"JoinsNamespaceOf=standby-{setting}.service" if name == "server" else "",
                "[Service]",
                f"{setting}={shipped[setting]}",
                "ExecStart=/bin/sleep infinity",
            ]
        )
        for setting in _OFF
        for name in ("standby", "server")
    }
    with _systemd(files) as manager:
        names = [Path(path).stem for path in files]
        assert manager.start(*names).returncode == 0
        for setting in _OFF:
            first, second = (_namespaces(manager.main_pid(f"{name}-{setting}")) for name in ("standby", "server"))
            assert first != second, setting
