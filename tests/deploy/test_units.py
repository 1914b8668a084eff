"""The shipped units under a real systemd. The isolated unit serves. With warm.conf, its starts are warm."""

import re
from pathlib import Path

import psutil
import pytest

from tests.deploy.shipped import DEPLOY, ROOT, SECRETS
from tests.deploy.systemd import Systemd
from tests.support.folders import short_folder
from tests.support.waiting import wait_until

pytestmark = pytest.mark.thorough
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
    words = "serve --models /etc/vllm-cli/models.yaml"
    drop_in = f"{_LOGGED}ExecStart=\nExecStart=/opt/vllm-cli/bin/vllm-cli {words}\n{reload}\n"
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
