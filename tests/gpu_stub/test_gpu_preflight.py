"""Too few GPUs are told at once."""

import time

import pytest

from tests.gpu_stub.gpu_server import EAGER, GpuServer

_SOON_S = 5.0
_FAULTS = [
    pytest.param(
        ("--tensor-parallel-size", "3"), {"STUB_GPUS": "1"}, "need 3 GPUs on this node, and 1 can be used", id="TP 3"
    ),
    pytest.param((), {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES= hides all GPUs", id="hidden"),
]


@pytest.mark.parametrize(("words", "environment", "told"), _FAULTS)
def test_a_start_without_its_gpus_is_refused(tmp_path, words, environment, told):
    begin_s = time.monotonic()
    with GpuServer("ours", *EAGER, *words, folder=tmp_path, environment=environment) as server:
        assert server.process.wait(60) == 3
        took_s = time.monotonic() - begin_s
    assert took_s < _SOON_S
    assert server.log.count(told) == 1
    assert len([line for line in server.log.splitlines() if "GPU" in line]) == 1, server.log
