"""Starts past the preflight without a usable driver fail as those of plain vLLM, and tell its reason."""

import pytest

from tests.gpu_stub.gpu_server import EAGER, GpuServer

_NO_DEVICE = "Failed to infer device type"
_FAULTS = [
    pytest.param({"STUB_GPUS": "0"}, _NO_DEVICE, "no GPU is visible", id="no GPU"),
    pytest.param({"STUB_DRIVER": "not-loaded"}, _NO_DEVICE, "no GPU is visible", id="driver not loaded"),
    pytest.param(
        {"STUB_DRIVER": "old"},
        "The NVIDIA driver on your system is too old",
        "the GPU's driver does not fit the CUDA version of this vLLM",
        id="driver too old",
    ),
]


@pytest.mark.parametrize(("environment", "reason", "cause"), _FAULTS)
def test_a_start_without_a_usable_driver_fails_with_the_reason_of_vllm(home, environment, reason, cause):
    with GpuServer("plain", *EAGER, folder=home, environment=environment) as server:
        assert server.process.wait(600) == 1
    assert reason in server.log
    with GpuServer("ours", *EAGER, "--preflight", "warn", folder=home, environment=environment) as server:
        server.wait(lambda: server.process.poll() is not None)
        assert server.process.returncode == 3
    *_, told, _, _ = server.log.splitlines()
    assert told.startswith(f"Cause: {cause}: RuntimeError: {reason}")
