"""Process limits, checked in a process with these limits, and shared memory."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from startup.preflight.report import PreflightReport

Preflight = Callable[..., PreflightReport]

SCRIPT = """
import resource, sys
from server.config import EngineConfig, RendererConfig
from base.server_settings import NetworkConfig
from server.server_config import ServerConfig
from base.machine.memory import MemoryState
from startup.config import ModelConfig, StartupConfig
from startup.preflight.run import PreflightOptions, run_preflight
name, value, model = sys.argv[1:]
resource.setrlimit(getattr(resource, name), (int(value), resource.getrlimit(getattr(resource, name))[1]))
config = StartupConfig(
    start_method="spawn", engine_ready_timeout_s=60, logging_level="INFO", model=ModelConfig(model=model),
    engine=EngineConfig(), renderer=RendererConfig(),
    server=ServerConfig(served_model_names=("m",), network=NetworkConfig(port=0)),
)
print(run_preflight(config, options=PreflightOptions(memory=MemoryState(64 << 30, 64 << 30))).to_json())
"""


def findings_under(limit: str, value: int, model: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-c", SCRIPT, limit, str(value), str(model)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    findings: list[dict[str, Any]] = json.loads(result.stdout)["findings"]
    return findings


def test_few_open_files_are_a_warning_and_very_few_an_error(model_path):
    (some,) = findings_under("RLIMIT_NOFILE", 256, model_path)
    (few,) = findings_under("RLIMIT_NOFILE", 32, model_path)
    assert (some["check"], some["severity"]) == ("nofile", "warning")
    assert (few["check"], few["severity"]) == ("nofile", "error")
    assert "256 open files are allowed" in some["message"]
    assert "ulimit -n 1024" in few["message"]


@pytest.mark.parametrize(("limit", "check"), [("RLIMIT_AS", "address_space"), ("RLIMIT_DATA", "data_segment")])
def test_a_small_address_space_is_reported_with_the_need(model_path, limit, check):
    (finding,) = [f for f in findings_under(limit, 600 << 20, model_path) if f["check"] == check]
    assert finding["severity"] == "error"
    assert "allows 600.0 MiB" in finding["message"]
    assert "22.5 GiB for the KV cache" in finding["message"]


def test_unlimited_process_has_no_findings(model_path):
    assert findings_under("RLIMIT_AS", resource.RLIM_INFINITY, model_path) == []


def test_missing_shared_memory_is_an_error(tmp_path, model_path, preflight):
    (finding,) = preflight(model_path, shm=tmp_path / "shm").errors
    assert finding.check == "shm"
    assert "mount a tmpfs there" in finding.message


def test_shared_memory_of_a_container_may_be_small_but_not_full(model_path, preflight):
    assert preflight(model_path, shm=Path("/dev/shm")).errors == ()
    (finding,) = preflight(model_path, shm=Path("/proc")).findings
    assert finding.check == "shm"
