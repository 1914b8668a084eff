"""What the preflight says about GPUs that are missing, hidden, or have an unusable driver."""

import time

import pytest

from tests.gpu_stub.gpu_server import EAGER, UUID, GpuServer, run_preflight

pytestmark = pytest.mark.ci_vllm
_SOON_S = 5.0
_TP3 = ("--tensor-parallel-size", "3")
_ACCEPTED = [
    pytest.param((), {}, id="one GPU"),
    pytest.param((), {"CUDA_VISIBLE_DEVICES": UUID % 0}, id="UUID"),
    pytest.param(_TP3, {"STUB_GPUS": "3"}, id="three GPUs"),
]
_REFUSED = [
    pytest.param({"STUB_GPUS": "0"}, "GPU", id="no GPU"),
    pytest.param({"STUB_DRIVER": "not-loaded"}, "Driver Not Loaded", id="driver not loaded"),
    pytest.param({"STUB_DRIVER": "mismatch"}, "Driver/library version mismatch", id="driver exchanged"),
    pytest.param({"STUB_DRIVER": "old"}, "12.4", id="driver too old"),
]
_REFUSED_STARTS = [
    pytest.param(_TP3, {"STUB_GPUS": "1"}, "need 3 GPUs on this node, and 1 can be used", id="TP 3 on one GPU"),
    pytest.param((), {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES= hides all GPUs", id="no visible GPU"),
]


@pytest.mark.parametrize(("words", "variables"), _ACCEPTED)
def test_a_start_that_fits_is_accepted(tmp_path, words, variables):
    done = run_preflight(tmp_path, *words, **variables)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("variables", "told"), _REFUSED)
def test_a_machine_without_a_usable_gpu_is_refused(tmp_path, variables, told):
    done = run_preflight(tmp_path, **variables)
    assert done.returncode == 3, done.stdout + done.stderr
    assert told in done.stdout + done.stderr


@pytest.mark.parametrize(("words", "environment", "told"), _REFUSED_STARTS)
def test_a_start_without_its_gpus_ends_at_once_with_one_line(tmp_path, words, environment, told):
    begin_s = time.monotonic()
    with GpuServer("ours", *EAGER, *words, folder=tmp_path, environment=environment) as server:
        assert server.process.wait(60) == 3
        took_s = time.monotonic() - begin_s
    assert took_s < _SOON_S
    assert server.log.count(told) == 1
    assert len([line for line in server.log.splitlines() if "GPU" in line]) == 1, server.log
