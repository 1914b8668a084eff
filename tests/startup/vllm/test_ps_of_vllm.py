"""`vllm-cli ps` and `stop` support a vLLM started with `--engine vllm`, with all of its processes."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.certificates import make_certificate, needs_openssl
from tests.startup.vllm.fake_start import FakeStart, environment
from tests.waiting import wait_until

pytestmark = pytest.mark.thorough


def _cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "vllm_cli", *words], capture_output=True, text=True, timeout=200)


def _entry(start: FakeStart, state: str) -> dict[str, Any]:
    """The server's entry, once it has this state: on a busy machine a single request may get no answer."""
    found: list[dict[str, Any]] = []

    def is_so() -> bool:
        found[:] = [e for e in json.loads(_cli("ps", "--json").stdout) if e["pid"] == start.process.pid]
        return bool(found and found[0]["state"] == state)

    wait_until(is_so)
    return found[0]


def test_vllm_is_found_and_stopped_with_all_its_processes(folder):
    with FakeStart(folder, "model", "--served-model-name", "fake") as start:
        start.wait_until_ready()
        entry = _entry(start, "ready")
        assert (entry["port"], entry["engine"], entry["model"]) == (start.port, "vllm", "fake")
        assert set(entry["pids"]) == {start.process.pid, *(p.pid for p in start.record_tree())}
        assert len(entry["pids"]) > 2
        assert _cli("stop", str(start.port)).returncode == 0
        assert start.process.wait(60) == 0
        start.wait_until_tree_is_gone()


@pytest.mark.parametrize(
    ("words", "variables", "state"),
    [((), {"VCLI_PLAIN_VLLM": "1"}, "ready"), (("--headless",), {}, "not listening")],
    ids=["plain", "headless"],
)
def test_a_vllm_that_has_no_early_port_is_listed(words, variables, state, folder):
    with FakeStart(folder, *words, env=environment(folder, **variables)) as start:
        entry = _entry(start, state)
        assert (entry["port"], entry["engine"]) == (None if words else start.port, "vllm")


@needs_openssl
def test_a_vllm_with_tls_is_listed(folder):
    with FakeStart(folder, *make_certificate(folder, "server").flags) as start:
        assert _entry(start, "ready")["address"] == f"https://127.0.0.1:{start.port}"


def test_a_starting_vllm_is_listed_as_starting(folder):
    with FakeStart(folder, "--gate", str(folder / "gate")) as start:
        start.wait_until_answered(503)
        assert _entry(start, "starting")["port"] == start.port
