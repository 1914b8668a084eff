"""The shipped units under a real systemd. The isolated unit serves. With warm.conf, its starts are warm."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deploy.shipped import DEPLOY, SECRETS
from tests.deploy.systemd import Systemd
from tests.startup.vllm.fake_start import short_folder
from tests.support.waiting import wait_until

pytestmark = pytest.mark.thorough
_UNITS = {path.name: path.read_text() for path in (DEPLOY / "systemd").iterdir()}
_SERVICES = ("vllm-cli.service", "vllm-cli-standby.service")
_LOGGED = "[Service]\nStandardError=append:/run/%N.log\nRestart=no\n"
"""With this drop-in, the log of a failed start is in a file, and the start is not repeated."""
_ASK = """
import json, sys, urllib.request
request = urllib.request.Request("http://127.0.0.1:8000/v1/models", headers={"Authorization": "Bearer " + sys.argv[1]})
print(json.load(urllib.request.urlopen(request))["data"][0]["id"])
"""


@contextmanager
def _systemd(files: dict[str, str], model: Path | None = None) -> Iterator[Systemd]:
    with short_folder() as folder, Systemd(folder, files, model) as manager:
        yield manager


def _server(environment: str = "") -> dict[str, str]:
    """The files of the server's units and of a configuration."""
    return {
        **{f"/etc/units/{name}": text for name, text in _UNITS.items() if name.startswith("vllm-cli.")},
        **{f"/etc/units/{service}.d/log.conf": _LOGGED for service in _SERVICES},
        "/etc/vllm-cli/config.yaml": "model: /opt/model\nmax-model-len: 256\n",
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


def _assert_serves(manager: Systemd) -> None:
    assert manager.show("vllm-cli", "StatusText").startswith("ready: http://")
    answer = manager.run("/opt/python/bin/python3", "-c", _ASK, SECRETS["api-key"])
    assert answer.stdout == "/opt/model\n", answer.stderr


@pytest.mark.parametrize("activation", ["service", "socket"])
def test_the_isolated_unit_serves_and_stops(activation, tiny_llama):
    with _systemd(_server(), tiny_llama) as manager:
        started = manager.start(f"vllm-cli.{activation}", "vllm-cli.service")
        log = manager.run("cat", "/run/vllm-cli.log").stdout
        assert started.returncode == 0, started.stderr + log
        _assert_serves(manager)
        wait_until(lambda: "(cold: " in manager.run("cat", "/run/vllm-cli.log").stdout)  # logged after READY=1
        assert Path(f"/proc/{manager.main_pid('vllm-cli')}").stat().st_uid >= 61184  # a user of systemd's own
        manager.run("systemctl", "stop", f"vllm-cli.{activation}", "vllm-cli.service")
        assert (manager.show("vllm-cli", "Result"), manager.show("vllm-cli", "ActiveState")) == ("success", "inactive")


def test_with_the_drop_in_of_both_units_starts_and_restarts_are_warm(tiny_llama):
    with _systemd(_warm_server(), tiny_llama) as manager:
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
