"""Models of a router fall asleep for other models on the GPUs. After waking, they answer as before."""

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

from tests.gpu_stub.gpu_router import GpuRouter, gpu_model, peak_bounded
from tests.gpu_stub.private_devices import needs_root

pytestmark = needs_root
_NUM_REQUESTS = 15
"""Requests to the models in turns, and as many requests to random models."""
_NUM_CLIENTS = 4
_SEED = 60


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
