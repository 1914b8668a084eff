"""What the preflight says about GPUs that are missing, hidden, or have an unusable driver."""

import pytest

from tests.gpu_stub.gpu_server import run_preflight

_TP3 = ("--tensor-parallel-size", "3")
_UUID = "GPU-00000000-0000-0000-0000-000000000000"


def _told(done) -> str:
    return done.stdout + done.stderr


@pytest.mark.ci_vllm
@pytest.mark.parametrize(
    ("words", "variables"),
    [
        pytest.param((), {}, id="one GPU"),
        pytest.param((), {"CUDA_VISIBLE_DEVICES": _UUID}, id="UUID"),
        pytest.param(_TP3, {"STUB_GPUS": "3"}, id="three GPUs"),
    ],
)
def test_a_start_that_fits_is_accepted(tmp_path, words, variables):
    done = run_preflight(tmp_path, *words, **variables)
    assert done.returncode == 0, _told(done)


@pytest.mark.ci_vllm
@pytest.mark.parametrize(
    ("words", "variables", "text"),
    [
        pytest.param(_TP3, {}, "GPU", id="TP 3 on one GPU"),
        pytest.param((), {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES", id="no visible GPU"),
        pytest.param((), {"STUB_GPUS": "0"}, "GPU", id="no GPU"),
        pytest.param((), {"STUB_DRIVER": "not-loaded"}, "Driver Not Loaded", id="driver not loaded"),
        pytest.param((), {"STUB_DRIVER": "mismatch"}, "Driver/library version mismatch", id="driver exchanged"),
        pytest.param((), {"STUB_DRIVER": "old"}, "12.4", id="driver too old"),
    ],
)
def test_a_start_that_cannot_work_is_refused(tmp_path, words, variables, text):
    done = run_preflight(tmp_path, *words, **variables)
    assert done.returncode == 3, _told(done)
    assert text in _told(done)
