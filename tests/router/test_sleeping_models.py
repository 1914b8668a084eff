"""Models of the fake vLLM change places asleep. `http/test_outcomes.py` has all orders and states."""

import pytest

from tests.router.sleeping_router import AWAKE, SleepingRouter
from tests.startup.vllm.fake_start import short_folder
from tests.support.http_client import ask

pytestmark = pytest.mark.thorough


def test_models_change_places_asleep_with_the_same_processes():
    with short_folder() as folder, SleepingRouter(folder, "--on-swap", "sleep") as router:
        assert (router.says("a"), router.says("b")) == (AWAKE, AWAKE)
        pids = {name: router.pid(name) for name in "ab"}
        for name, other in ("ab", "ba") * 2:
            assert router.says(name) == AWAKE
            assert (router.state(name), router.state(other)) == ("ready", "asleep")
            assert ask(f"{router.url}/readyz?model={other}").status == 200
        assert {name: router.pid(name) for name in "ab"} == pids
        states = {row["model"]: row["state"] for row in router.ask("/running").json["running"]}
        assert states == {"a": "asleep", "b": "ready"}
        assert router.metric("vllm_cli:model_sleep_changes_total", model="a", verb="wake") == 2
        assert router.metric("vllm_cli:model_state", model="a", state="asleep") == 1
        assert all(row["num_starts"] == 1 for row in router.models().values())
        assert router.terminate() == 0
