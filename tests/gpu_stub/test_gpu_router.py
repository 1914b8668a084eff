"""A router's models do not fit the GPU together. They stop or sleep for each other."""

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

from tests.gpu_stub.gpu_router import GpuRouter, beside, gpu_model, needs_root, peak_bounded, take_memory
from tests.gpu_stub.gpu_server import gpu_variables, used_bytes

pytestmark = needs_root
_MODELS = {"a": gpu_model(), "b": gpu_model()}
_MODEL_BYTES = 60 << 30


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
        beside(take_memory(0), gpu_variables(home)) as taker,
        ThreadPoolExecutor(1) as pool,
    ):
        print(file=taker.stdin, flush=True)
        assert taker.stdout.readline() == "0\n"
        answer = pool.submit(router.complete, "a")
        router.wait(lambda: router.models()["a"]["num_waiting"])
        assert router.states() == {"a": "stopped", "b": "stopped"}
        taker.kill()
        assert answer.result().status == 200, router.log
        assert router.terminate() == 0


def test_three_models_change_places_and_lose_no_request(tmp_path):
    """Models a and b fit the GPU together. Model c needs nearly the whole GPU. Requests name
    the models in turns, and then at random.
    """
    models = {"a": gpu_model(share=0.4), "b": gpu_model(share=0.4), "c": gpu_model(share=0.85)}
    in_turns = [*islice(cycle(models), 15)]
    at_random = random.Random(60).choices([*models], k=15)
    with peak_bounded(tmp_path), GpuRouter(tmp_path, models, "--on-swap", "sleep") as router:
        for names, num_clients in ((in_turns, 1), (at_random, 4)):
            with ThreadPoolExecutor(num_clients) as clients:
                answers = list(clients.map(router.complete, names))
            assert {answer.status for answer in answers} == {200}, router.log[-8000:]
        assert [row["num_starts"] for row in router.models().values()] == [1, 1, 1]
        assert router.terminate() == 0
