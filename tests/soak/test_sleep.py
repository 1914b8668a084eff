"""Two models sleep for each other and when they are idle. No request is lost, and no resource grows.

The models are the fake vLLM. The router, the control sockets and the processes are real. The test has four
quarters. In each quarter, clients send random requests, then both models fall asleep.
"""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest

from tests.router.sleeping_router import AWAKE, SleepingRouter
from tests.soak.held import Held, find_growth, measure, settle
from tests.startup.vllm.fake_start import short_folder

_NUM_QUARTERS: Final = 4
_NUM_CLIENTS: Final = 3
_LONGEST_PAUSE_S: Final = 2.0


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_models_that_sleep_and_wake_lose_and_leave_nothing(pytestconfig):
    minutes, seed = pytestconfig.getoption("--minutes", 0.7), pytestconfig.getoption("--seed", 0)
    rests: list[Held] = []
    with short_folder() as folder, SleepingRouter(folder, "--on-swap", "sleep", "--idle-sleep", "1s") as router:

        def ask_at_random(number: int, end_s: float) -> int:
            chooses, count = random.Random(number), 0
            while time.monotonic() < end_s:
                assert router.says(chooses.choice("ab")) == AWAKE
                time.sleep(chooses.uniform(0, _LONGEST_PAUSE_S))
                count += 1
            return count

        for quarter in range(_NUM_QUARTERS):
            end_s = time.monotonic() + minutes * 60 / _NUM_QUARTERS
            with ThreadPoolExecutor(_NUM_CLIENTS) as clients:
                seeds = range(seed + quarter * _NUM_CLIENTS, seed + (quarter + 1) * _NUM_CLIENTS)
                asked = list(clients.map(lambda each, end_s=end_s: ask_at_random(each, end_s), seeds))
            for name in "ab":
                router.wait_state(name, "asleep")
            tree = [router.root, *router.root.children(recursive=True)]
            rests.append(settle(lambda tree=tree: measure(tree), rests))
            num_wakes = router.metric("vllm_cli:model_sleep_changes_total", model="a", verb="wake")
            print(f"\n{sum(asked)} requests, {num_wakes:.0f} wakes of a: {rests[-1]}")
        assert find_growth(rests) == []
        assert all(row["num_starts"] == 1 for row in router.models().values())
        assert router.terminate() == 0
