"""The shipped units under a real systemd. The isolated unit serves. With warm.conf, its starts are warm."""

import os
import re
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

from tests.deploy.shipped import DEPLOY, ROOT, SECRETS
from tests.support.folders import short_folder
from tests.support.marks import require_tool
from tests.support.waiting import wait_until

pytestmark = pytest.mark.thorough

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
                path.chmod(0o755)  # type: ignore[attr-defined]
        self._folder = folder

    def __enter__(self) -> Self:
        self._cgroup = _own_cgroup()
        binds = [argument for name, path in _PLACES.items() for argument in (path, f"opt/{name}")]
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

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a command as root in the manager's namespaces."""
        enter = ["nsenter", f"--target={self._init}", *_NAMESPACES, "--root", "--wd"]
        return subprocess.run([*enter, *arguments], capture_output=True, text=True, timeout=300)

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
        statuses = {process.pid: Path(f"/proc/{process.pid}/status").read_text() for process in processes}
        [pid] = [pid for pid, text in statuses.items() if re.search(rf"^NSpid:.*\s{inner}$", text, re.M)]
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


_UNITS = {path.name: path.read_text() for path in (DEPLOY / "systemd").iterdir()}
_SERVICES = ("vllm-cli.service", "vllm-cli-standby.service")
_LOGGED = "[Service]\nStandardError=append:/run/%N.log\nRestart=no\n"
"""With this drop-in, the log of a failed start is in a file, and the start is not repeated."""
_CLIENT = """
import json, subprocess, sys, time, urllib.error, urllib.request
def ask(path, **body):
    headers = {"Authorization": "Bearer " + sys.argv[1], "Content-Type": "application/json"}
    data = json.dumps(body).encode() if body else None
    try:
        return urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:8000" + path, data, headers))
    except urllib.error.HTTPError as err:
        return err
def wait_status(status):
    while ask("/health").status != status:
        time.sleep(0.02)
"""
"""Fails if a connection is refused, or ends without an answer."""
_MODELS = 'print(*(model["id"] for model in json.load(ask("/v1/models"))["data"]))'
_UNTIL_RESTARTED = """
subprocess.Popen(["systemctl", "restart", "vllm-cli"])
wait_status(503)
wait_status(200)
"""
_STREAM_OVER_STOP = """
options = {"ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
answer = ask("/v1/completions", prompt="Once", max_tokens=1000, **options)
lines = [answer.readline()]
subprocess.run(["systemctl", "stop", "--no-block", "vllm-cli.socket", "vllm-cli.service"])
wait_status(503)
lines += [line for line in answer if line.strip()]
print(json.loads(lines[-2][6:])["usage"]["completion_tokens"], lines[-1].decode(), end="")
"""


def _server(environment: str = "", *, max_model_len: int = 256) -> dict[str, str]:
    """The files of the server's units and of a configuration."""
    return {
        **{f"/etc/units/{name}": text for name, text in _UNITS.items() if name.startswith("vllm-cli.")},
        **{f"/etc/units/{service}.d/log.conf": _LOGGED for service in _SERVICES},
        "/etc/vllm-cli/config.yaml": f"model: /opt/model\nmax-model-len: {max_model_len}\n",
        "/etc/vllm-cli/environment": f"VLLM_API_KEY={SECRETS['api-key']}\n{environment}",
    }


def _warm_server() -> dict[str, str]:
    """The files of server and standby, with the drop-ins and their user. A cold start fails."""
    return _server("VCLI_STANDBY=require\n") | {
        **{f"/etc/units/{service}.d/warm.conf": _UNITS["warm.conf"] for service in _SERVICES},
        "/etc/units/vllm-cli-standby.service": _UNITS["vllm-cli-standby.service"],
        "/etc/passwd": Path("/etc/passwd").read_text() + "vllm-cli:x:59999:59999::/var/cache/vllm-cli:/bin/false\n",
        "/etc/group": Path("/etc/group").read_text() + "vllm-cli:x:59999:\n",
    }


def _run_client(manager: Systemd, script: str) -> str:
    done = manager.run("/opt/python/bin/python3", "-c", _CLIENT + script, SECRETS["api-key"])
    assert done.returncode == 0, done.stderr
    return done.stdout


def _assert_serves(manager: Systemd) -> None:
    assert manager.show("vllm-cli", "StatusText").startswith("ready: http://")
    assert _run_client(manager, _MODELS) == "/opt/model\n"


def test_the_isolated_unit_serves_and_stops(tiny_llama):
    with short_folder() as folder, Systemd(folder, _server(), tiny_llama) as manager:
        started = manager.start("vllm-cli.service")
        log = manager.run("cat", "/run/vllm-cli.log").stdout
        assert started.returncode == 0, started.stderr + log
        _assert_serves(manager)
        wait_until(lambda: "(cold: " in manager.run("cat", "/run/vllm-cli.log").stdout)  # logged after READY=1
        assert Path(f"/proc/{manager.main_pid('vllm-cli')}").stat().st_uid >= 61184  # a user of systemd's own
        manager.run("systemctl", "stop", "vllm-cli.service")
        assert (manager.show("vllm-cli", "Result"), manager.show("vllm-cli", "ActiveState")) == ("success", "inactive")


def test_with_the_drop_in_of_both_units_starts_and_restarts_are_warm(tiny_llama):
    with short_folder() as folder, Systemd(folder, _warm_server(), tiny_llama) as manager:
        for command in ("start", "restart"):  # the standby starts first, as the server wants it
            done = manager.run("systemctl", command, "vllm-cli.service")
            log = manager.run("sh", "-c", "cat /run/*.log").stdout
            assert done.returncode == 0, done.stderr + log
            _assert_serves(manager)
        assert log.count("warm start: forked from the standby's process") == 2
        front = manager.main_pid("vllm-cli")
        manager.run("systemctl", "stop", "vllm-cli")
        assert not Path(f"/proc/{front}").exists()
        assert manager.show("vllm-cli", "Result") == "success"
        assert manager.show("vllm-cli-standby", "ActiveState") == "active"


def test_no_connection_is_refused_from_the_socket_s_start_on_and_a_stop_lets_a_stream_finish(tiny_llama):
    """The first request starts the service. A restart is not seen but by answers of 503."""
    with short_folder() as folder, Systemd(folder, _server(max_model_len=4096), tiny_llama) as manager:
        manager.start("vllm-cli.socket")
        assert manager.show("vllm-cli", "ActiveState") == "inactive"
        for script in ("wait_status(200)", _UNTIL_RESTARTED):
            _run_client(manager, script)
        assert _run_client(manager, _STREAM_OVER_STOP) == "1000 data: [DONE]\n"
        wait_until(lambda: manager.show("vllm-cli", "ActiveState") == "inactive")
        assert manager.show("vllm-cli", "Result") == "success"


def test_a_server_that_hangs_or_loses_its_engine_is_restarted(tiny_llama):
    """The watchdog waits shorter than the unit's. The engine is killed as if memory had run out."""
    short = (
        f"{_LOGGED}Restart=on-failure\nWatchdogSec=5\nExecStopPost=+/bin/sh -c 'echo $$SERVICE_RESULT >>/run/ends'\n"
    )
    with (
        short_folder() as folder,
        Systemd(folder, _server() | {"/etc/units/vllm-cli.service.d/log.conf": short}, tiny_llama) as manager,
    ):
        manager.start("vllm-cli.service")
        for number, end in enumerate(("watchdog", "exit-code"), 1):
            main = psutil.Process(manager.main_pid("vllm-cli"))
            if end == "watchdog":
                main.suspend()
            else:
                max(main.children(recursive=True), key=lambda process: process.memory_info().rss).kill()
            wait_until(lambda count=str(number): manager.show("vllm-cli", "NRestarts") == count, 200)
            assert manager.run("tail", "-n1", "/run/ends").stdout == f"{end}\n"
            manager.start("vllm-cli.service")
            _assert_serves(manager)


def test_a_reload_with_the_page_s_line_reads_the_models_file_again(tiny_llama):
    [reload] = re.findall(r"`(ExecReload=[^`]+)`", " ".join((ROOT / "docs" / "many-models.md").read_text().split()))
    arguments = "serve --models /etc/vllm-cli/models.yaml"
    drop_in = f"{_LOGGED}ExecStart=\nExecStart=/opt/vllm-cli/bin/vllm-cli {arguments}\n{reload}\n"
    files = {
        "/etc/units/vllm-cli.service.d/log.conf": drop_in,
        "/etc/vllm-cli/models.yaml": "models: {first: {model: /opt/model}}\n",
    }
    with short_folder() as folder, Systemd(folder, _server() | files, tiny_llama) as manager:
        manager.start("vllm-cli.service")
        assert _run_client(manager, _MODELS) == "first\n"
        manager.run("sed", "-i", "s/first/second/", "/etc/vllm-cli/models.yaml")
        assert manager.run("systemctl", "reload", "vllm-cli").returncode == 0
        wait_until(lambda: _run_client(manager, _MODELS) == "second\n")
