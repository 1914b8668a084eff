"""Five hundred requests for two models with room for one; a third of the clients leave at any moment."""

import asyncio
import json
import random

import aiohttp
import pytest

from envs.registry import env
from tests.startup.router.router_process import RouterProcess, embedded
from tests.waiting import wait_until

pytestmark = pytest.mark.thorough

_PROMPTS = ("Once", "upon a time", "there was", "a port", "with many models")
_NUM_REQUESTS = 500
_NUM_CLIENTS = 40
_OPTIONS = ("--max-running", "1", "--max-wait", "2", "--max-waiting", "500")


def test_every_request_that_stays_is_answered_right_and_nothing_is_left(tiny_llama, tmp_path):
    models = {"a": embedded(tiny_llama), "b": embedded(tiny_llama)}
    with RouterProcess(tmp_path, models, *_OPTIONS, environment={env.VCLI_STANDBY.name: "auto"}) as router:
        answered, left = asyncio.run(_race(router.url))

        assert answered + left == _NUM_REQUESTS
        assert answered > _NUM_REQUESTS / 3
        assert left > _NUM_REQUESTS / 10
        wait_until(lambda: all(model["num_running"] == 0 for model in router.models().values()))
        states = router.models()
        assert [model["num_waiting"] for model in states.values()] == [0, 0]
        assert sum(model["status"] == "ready" for model in states.values()) == 1
        assert all(model["num_starts"] > 1 for model in states.values()), "they have taken turns"
        assert all(router.post(model).status == 200 for model in models)
        assert router.terminate() == 0


async def _race(url: str) -> tuple[int, int]:
    """Returns how many were answered, and how many have left."""
    rng = random.Random(1)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(120)) as session:
        expected = {prompt: await _complete(session, "a", prompt, is_stream=False) for prompt in _PROMPTS}
        plans = [_Plan(rng) for _ in range(_NUM_REQUESTS)]
        waiting = iter(plans)

        async def client() -> list[bool]:
            return [await plan.run(session, expected) for plan in waiting]

        results = await asyncio.gather(*(client() for _ in range(_NUM_CLIENTS)))
    outcomes = [is_answered for result in results for is_answered in result]
    return outcomes.count(True), outcomes.count(False)


class _Plan:
    """One request: what it asks for, and when its client leaves."""

    def __init__(self, rng: random.Random) -> None:
        self.model = rng.choice("ab")
        self.prompt = rng.choice(_PROMPTS)
        self.is_stream = rng.random() < 0.5
        self.patience_s = rng.choice((None, None, 2.0 * rng.random() ** 2))

    async def run(self, session: aiohttp.ClientSession, expected: dict[str, str]) -> bool:
        """Whether it was answered, not left."""
        try:
            async with asyncio.timeout(self.patience_s):
                text = await _complete(session, self.model, self.prompt, is_stream=self.is_stream)
        except TimeoutError:
            assert self.patience_s is not None, "no answer"
            return False
        assert text == expected[self.prompt]
        return True


async def _complete(session: aiohttp.ClientSession, model: str, prompt: str, *, is_stream: bool) -> str:
    body = {"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    async with session.post("/v1/completions", json={**body, "stream": is_stream}) as response:
        assert response.status == 200, await response.text()
        if not is_stream:
            answer = await response.json()
            assert answer["model"] == model
            return str(answer["choices"][0]["text"])
        lines = (await response.text()).splitlines()
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert events[-1] == "[DONE]", lines
    chunks = [json.loads(event) for event in events[:-1]]
    assert {chunk["model"] for chunk in chunks} == {model}
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
