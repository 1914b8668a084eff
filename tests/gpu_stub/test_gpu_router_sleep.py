"""Models of a router fall asleep for other models on the GPUs. After waking, they answer as before."""

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from typing import Any

from tests.gpu_stub.gpu_router import GpuRouter, gpu_model, peak_bounded
from tests.gpu_stub.private_devices import needs_root

pytestmark = needs_root
_NUM_REQUESTS = 15
"""Requests to the models in turns, and as many requests to random models."""
_NUM_CLIENTS = 4
_SEED = 60


def _usage(router: GpuRouter) -> Any:
    """The usage of a completion, not its text. Ranks do not always read token 0 from the stand-in."""
    answer = router.request("a", "/v1/completions", prompt="a", max_tokens=2, ignore_eos=True)
    assert answer.status == 200, (answer, router.log[-8000:])
    return answer.json["usage"]


def test_a_model_of_three_ranks_sleeps_for_another_one_and_is_as_before(tmp_path):
    models = {"a": gpu_model("--tensor-parallel-size", "3", sleep_level=2), "b": gpu_model()}
    with peak_bounded(tmp_path, 3), GpuRouter(tmp_path, models, "--on-swap", "sleep", num_gpus=3) as router:
        expected = _usage(router)
        for _ in range(2):
            assert router.complete("b").status == 200, router.log[-8000:]
            assert router.states() == {"a": "asleep", "b": "ready"}
            assert _usage(router) == expected
            assert router.states() == {"a": "ready", "b": "asleep"}
        assert [row["num_starts"] for row in router.models().values()] == [1, 1]
        assert router.terminate() == 0


def test_three_models_change_places_and_lose_no_request(tmp_path):
    """Models a and b fit the GPU together. Model c needs nearly the whole GPU."""
    models = {"a": gpu_model(share=0.4), "b": gpu_model(share=0.4), "c": gpu_model(share=0.85)}
    in_turns = [*islice(cycle(models), _NUM_REQUESTS)]
    at_random = random.Random(_SEED).choices([*models], k=_NUM_REQUESTS)
    with peak_bounded(tmp_path), GpuRouter(tmp_path, models, "--on-swap", "sleep") as router:
        for names, num_clients in ((in_turns, 1), (at_random, _NUM_CLIENTS)):
            with ThreadPoolExecutor(num_clients) as clients:
                answers = list(clients.map(router.complete, names))
            assert {answer.status for answer in answers} == {200}, router.log[-8000:]
        assert [row["num_starts"] for row in router.models().values()] == [1, 1, 1]
        assert router.terminate() == 0
