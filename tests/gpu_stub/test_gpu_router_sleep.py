"""Models of a router fall asleep for other models on the GPUs. After waking, they answer as before."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from typing import Any

import pytest

from tests.gpu_stub.gpu_router import GpuRouter, gpu_model, peak_bounded
from tests.gpu_stub.private_devices import needs_root
from tests.gpu_stub.recipe_models import save_adapter

pytestmark = needs_root
_NUM_REQUESTS = 15
"""Requests to the models in turns, and as many requests to random models."""
_NUM_CLIENTS = 4
_SEED = 60


def _usage(router: GpuRouter) -> Any:
    """The usage of a completion, not its text. Ranks do not always read token 0 from the stand-in."""
    return _member(router, "a", "/v1/completions", "usage", prompt="a", max_tokens=2, ignore_eos=True)


def _adapted(router: GpuRouter) -> Any:
    listed = [model["id"] for model in router.ask("/upstream/a/v1/models").json["data"]]
    assert "own" in listed
    return [_member(router, name, "/v1/completions", "choices", prompt="a", max_tokens=2) for name in ("a", "own")]


def _embedding(router: GpuRouter) -> Any:
    return _member(router, "a", "/v1/embeddings", "data", input=["a"])


def _member(router: GpuRouter, model: str, path: str, key: str, **body: Any) -> Any:
    answer = router.request(model, path, **body)
    assert answer.status == 200, (answer, router.log[-8000:])
    return answer.json[key]


@pytest.mark.parametrize(
    ("words", "num_gpus", "level", "ask"),
    [
        pytest.param(("--tensor-parallel-size", "3"), 3, 2, _usage, id="TP 3"),
        pytest.param(("--data-parallel-size", "2"), 2, 1, _usage, id="DP 2"),
        pytest.param(("--enable-lora", "--lora-modules", "own={adapter}"), 1, 1, _adapted, id="LoRA"),
        pytest.param(("--runner", "pooling", "--convert", "embed"), 1, 1, _embedding, id="pooling"),
    ],
)
def test_a_model_sleeps_for_another_one_and_is_as_before(
    tmp_path, words: tuple[str, ...], num_gpus: int, level: int, ask: Callable[[GpuRouter], Any]
):
    save_adapter(tmp_path)
    words = tuple(word.format(adapter=tmp_path) for word in words)
    models = {"a": gpu_model(*words, sleep_level=level), "b": gpu_model()}
    with (
        peak_bounded(tmp_path, num_gpus),
        GpuRouter(tmp_path, models, "--on-swap", "sleep", num_gpus=num_gpus) as router,
    ):
        expected = ask(router)
        for _ in range(2):
            assert router.complete("b").status == 200, router.log[-8000:]
            assert router.states() == {"a": "asleep", "b": "ready"}
            assert ask(router) == expected
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
