"""GPUs are missing, hidden or have an unusable driver. The preflight reports it, or the start fails."""

import pytest

from tests.gpu_stub.gpu_server import EAGER, GpuServer, run_preflight

_TP3 = ("--tensor-parallel-size", "3")
_MIG = "MIG-00000000-0000-0000-0000-000000000000"
_NO_DEVICE = "Failed to infer device type"
_TOO_OLD = "The NVIDIA driver on your system is too old"
_UNFIT = "the GPU's driver does not fit the CUDA version of this vLLM"


@pytest.mark.ci_vllm
@pytest.mark.parametrize(
    ("words", "variables", "told"),
    [
        pytest.param(_TP3, {"STUB_GPUS": "3"}, "", id="three GPUs"),
        pytest.param((), {"STUB_DRIVER": "old"}, "12.4", id="driver too old"),
    ],
)
def test_a_start_that_fits_is_accepted_and_another_one_refused(tmp_path, words, variables, told):
    """`tests/startup/vllm_words/preflight/test_devices.py` has what else a driver reports."""
    done = run_preflight(tmp_path, *words, **variables)
    assert done.returncode == (3 if told else 0), done.stdout + done.stderr
    assert told in done.stdout + done.stderr


@pytest.mark.ci_vllm
def test_a_start_without_its_gpus_ends_at_once_with_one_line(tmp_path):
    with GpuServer("ours", *EAGER, *_TP3, folder=tmp_path, environment={"STUB_GPUS": "1"}) as server:
        assert server.process.wait(60) == 3
    assert "non-default args" not in server.log, "vLLM has not begun"
    assert server.log.count("need 3 GPUs on this node, and 1 can be used") == 1
    assert len([line for line in server.log.splitlines() if "GPU" in line]) == 1, server.log


@pytest.mark.parametrize(
    ("environment", "reason", "cause"),
    [
        pytest.param({"STUB_GPUS": "0"}, _NO_DEVICE, "no GPU is visible", id="no GPU"),
        pytest.param({"STUB_DRIVER": "not-loaded"}, _NO_DEVICE, "no GPU is visible", id="driver not loaded"),
        pytest.param({"STUB_DRIVER": "old"}, _TOO_OLD, _UNFIT, id="driver too old"),
        pytest.param({"STUB_MIG": "1", "CUDA_VISIBLE_DEVICES": _MIG}, "NVMLError_NotFound", "", id="unknown MIG"),
    ],
)
def test_a_start_past_the_preflight_fails_with_the_reason_of_vllm(home, environment, reason, cause):
    warn = () if "STUB_MIG" in environment else ("--preflight", "warn")
    for launcher, words, code in (("plain", (), 1), ("ours", warn, 3)):
        with GpuServer(launcher, *EAGER, *words, folder=home, environment=environment) as server:
            server.wait(lambda server=server: server.process.poll() is not None)
            assert server.process.returncode == code
        assert reason in server.log
    [told] = [line for line in server.log.splitlines() if line.startswith("Cause: ")]
    if cause:
        assert told.startswith(f"Cause: {cause}: RuntimeError: {reason}")
    else:
        assert _MIG in told
        assert "CUDA_VISIBLE_DEVICES" in told
