"""`CUDA_VISIBLE_DEVICES` names a device by number or UUID: memory is used there and nowhere else."""

import signal

import pytest

from tests.gpu_stub.gpu_server import EAGER, UUID, GpuServer

_USED_BYTES = 60 << 30
_MIG = "MIG-00000000-0000-0000-0000-000000000000"


@pytest.mark.parametrize("device", ["1", UUID % 1], ids=["number", "UUID"])
def test_the_named_device_is_used_in_two_starts(tmp_path, device):
    environment = {"STUB_GPUS": "2", "CUDA_VISIBLE_DEVICES": device}
    for _ in range(2):
        with GpuServer("ours", *EAGER, folder=tmp_path, environment=environment) as server:
            assert server.wait_ready().generate()
            [engine] = server.assert_only(["EngineCore"])
            assert server.is_forked(engine)
            assert server.used_bytes(0) == 0
            assert server.used_bytes(1) > _USED_BYTES
            assert server.terminate(signal.SIGTERM) == 0


def test_an_unknown_mig_instance_is_refused_as_by_vllm_and_named(tmp_path):
    environment = {"STUB_MIG": "1", "CUDA_VISIBLE_DEVICES": _MIG}
    for launcher, code in (("plain", 1), ("ours", 3)):
        with GpuServer(launcher, *EAGER, folder=tmp_path, environment=environment) as server:
            server.wait(lambda server=server: server.process.poll() is not None)
            assert server.process.returncode == code
        assert "NVMLError_NotFound" in server.log
    [cause] = [line for line in server.log.splitlines() if line.startswith("Cause: ")]
    assert _MIG in cause
    assert "CUDA_VISIBLE_DEVICES" in cause
