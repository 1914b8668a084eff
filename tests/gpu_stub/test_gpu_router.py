"""A router's two models do not fit the GPU together. NVML's free memory decides which model runs."""

from concurrent.futures import ThreadPoolExecutor

from tests.gpu_stub.gpu_router import GpuRouter, beside, gpu_model, peak_bounded
from tests.gpu_stub.gpu_server import gpu_variables, used_bytes
from tests.gpu_stub.private_devices import needs_root

pytestmark = needs_root
_MODELS = {"a": gpu_model(), "b": gpu_model()}
_MODEL_BYTES = 60 << 30
_HOLD = """
import sys, torch
held = torch.empty(70 << 30, dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


def test_the_other_model_is_stopped_before_a_model_starts(home):
    with peak_bounded(home), GpuRouter(home, _MODELS) as router:
        for name, other in ("ab", "ba", "ab"):
            assert router.complete(name).status == 200, router.log
            assert router.states() == {name: "ready", other: "stopped"}
            assert used_bytes(router.variables)[0] > _MODEL_BYTES
        assert router.terminate() == 0


def test_a_model_waits_for_memory_that_another_program_frees_late(home):
    with (
        GpuRouter(home, _MODELS) as router,
        beside(_HOLD, gpu_variables(home)) as holder,
        ThreadPoolExecutor(1) as pool,
    ):
        assert holder.stdout.readline() == "held\n"
        answer = pool.submit(router.complete, "a")
        router.wait(lambda: router.models()["a"]["num_waiting"])
        assert router.states() == {"a": "stopped", "b": "stopped"}
        holder.kill()
        assert answer.result().status == 200, router.log
        assert router.terminate() == 0
