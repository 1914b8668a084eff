"""Random swaps of five models in a router with room for three lose no request and leave nothing behind.

During the swaps, processes of random models are killed, the models file is edited and models are unloaded.
Clients disconnect while their request is queued, while its model starts, and while the model answers. A
request is lost if it has no complete answer although its model was not killed or removed. `make test-swaps
ARGS="--swaps 200"` runs more swaps.
"""

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from envs.registry import env
from tests.router.router_process import RouterProcess, embedded
from tests.soak.held import Held, find_growth, measure, settle
from tests.support.http_client import RawClient, ask
from tests.support.llamas import save_tiny_llama
from tests.support.waiting import wait_until

NAMES: Final = ("m0", "m1", "m2", "m3", "m4")
NUM_CLIENTS: Final = 6
NUM_QUARTERS: Final = 4
AFTER_KILL_S: Final = 65.0
"""The longest back-off after a failure, and some time until the router notices the failure."""
AFTER_REMOVAL_S: Final = 10.0
BODY: Final = {"prompt": "Once upon", "temperature": 0, "ignore_eos": True, "max_tokens": 12}


class Swaps:
    """Clients of one router, and actors that kill, edit and unload its models."""

    def __init__(self, router: RouterProcess, models: dict[str, dict[str, Any]], seed: int) -> None:
        self._router = router
        self._models = models
        self._rng = random.Random(seed)
        self._excused_until_s = dict.fromkeys(NAMES, 0.0)
        """Model that was killed or removed -> the time until which its requests may fail."""
        self._starts: Counter[str] = Counter()
        self._is_over = threading.Event()
        self.num_swaps = 0
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._texts = {name: self._complete(name) for name in NAMES}
        assert len(set(self._texts.values())) == len(NAMES), "the models must answer differently"

    def run(self, num_swaps: int) -> None:
        """Runs clients and actors until this number of models has been started."""
        self._is_over.clear()
        actors = (*[self._act_as_client] * NUM_CLIENTS, self._kill, self._edit, self._unload)
        threads = [threading.Thread(target=self._repeat, args=(actor,)) for actor in actors]
        for thread in threads:
            thread.start()
        while self.num_swaps < num_swaps and not self.faults:
            time.sleep(1.0)
            self._count_starts()
        self._is_over.set()
        for thread in threads:
            thread.join()
        self._router.write(self._models)

    def rest(self, earlier: list[Held]) -> Held:
        """Unloads all models. Returns the resources that the router itself then has."""
        for name in NAMES:
            ask(f"{self._router.url}/v1/models/{name}/unload", {})
        wait_until(lambda: {model["status"] for model in self._router.models().values()} <= {"stopped", "failed"})
        assert all(model["num_running"] == 0 for model in self._router.models().values())
        return settle(lambda: measure([psutil.Process(self._router.process.pid)]), earlier)

    def _repeat(self, act: Callable[[], None]) -> None:
        while not self._is_over.is_set():
            act()

    def _count_starts(self) -> None:
        """Adds new starts to the number of swaps. The count of a removed model begins at 0 again."""
        for name, model in self._router.models().items():
            num_starts = model["num_starts"]
            self.num_swaps += num_starts - self._starts[name] if num_starts >= self._starts[name] else num_starts
            self._starts[name] = num_starts

    def _act_as_client(self) -> None:
        name = self._rng.choice(NAMES)
        if self._rng.random() < 0.15:
            self._vanish(name)
        else:
            self._request(name)
        self._is_over.wait(self._rng.choice((0.0, 0.0, self._rng.uniform(0, 0.5))))

    def _vanish(self, name: str) -> None:
        with RawClient(self._router.port) as client:
            client.post(
                "/v1/completions", BODY | {"model": name, "max_tokens": 200, "stream": self._rng.random() < 0.5}
            )
            self._is_over.wait(self._rng.choice((0.01, 0.1, 1.0)) * self._rng.random())
        self.counts["vanished"] += 1

    def _request(self, name: str) -> None:
        begin_s = time.monotonic()
        try:
            text = self._complete(name, is_stream=self._rng.random() < 0.5)
        except (AssertionError, LookupError, ValueError) as err:
            is_excused = begin_s < self._excused_until_s[name]
            self.counts["excused" if is_excused else "lost"] += 1
            if not is_excused:
                self.faults.append(f"{name} at swap {self.num_swaps}: {err!r}")
            return
        self.counts["complete"] += 1
        if text != self._texts[name]:
            self.faults.append(f"{name} answers {text!r}")

    def _complete(self, name: str, *, is_stream: bool = False) -> str:
        body = BODY | {"model": name, "stream": is_stream}
        answer = ask(f"{self._router.url}/v1/completions", body, timeout_s=300)
        assert answer.status == 200, answer
        if not is_stream:
            assert answer.json["model"] == name
            return str(answer.json["choices"][0]["text"])
        events = [line[6:] for line in answer.body.split(b"\n") if line.startswith(b"data: ")]
        assert events.pop() == b"[DONE]"
        return "".join(choice["text"] for event in events for choice in json.loads(event)["choices"])

    def _kill(self) -> None:
        """Kills a model about twice a minute. A back-off follows each kill."""
        self._is_over.wait(self._rng.uniform(5, 55))
        running = [(name, model["pid"]) for name, model in self._router.models().items() if model["pid"] is not None]
        if running and not self._is_over.is_set():
            name, pid = self._rng.choice(running)
            self._excused_until_s[name] = time.monotonic() + AFTER_KILL_S
            self.counts["kills"] += 1
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _edit(self) -> None:
        """Writes the same models file, a changed variable, a fault, or a file without the last model."""
        self._is_over.wait(self._rng.uniform(3, 12))
        self.counts["edits"] += 1
        match self._rng.randrange(4):
            case 0:
                self._models[self._rng.choice(NAMES)]["env"] = [f"SWAP_VARIABLE={self._rng.random()}"]
            case 1:
                self._router.file.write_text("models: {m0: [")
                self._is_over.wait(2.0)
            case 2:
                self._excused_until_s[NAMES[-1]] = time.monotonic() + 3.0 + AFTER_REMOVAL_S
                self._router.write({name: self._models[name] for name in NAMES[:-1]})
                self._is_over.wait(3.0)
        self._router.write(self._models)

    def _unload(self) -> None:
        self._is_over.wait(self._rng.uniform(2, 10))
        self.counts["unloads"] += 1
        verb = self._rng.choice(("load", "unload", "unload"))
        ask(f"{self._router.url}/v1/models/{self._rng.choice(NAMES)}/{verb}", {})


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_random_swaps_lose_and_leave_nothing(tmp_path, pytestconfig):
    num_swaps, seed = pytestconfig.getoption("--swaps", 30), pytestconfig.getoption("--seed", 0)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    models = {name: embedded(_save_model(tmp_path / name, number)) for number, name in enumerate(NAMES)}
    environment = {"TMPDIR": str(temporary), env.VCLI_STANDBY.name: "auto"}
    rests: list[Held] = []
    with RouterProcess(
        tmp_path, models, "--max-running", "3", "--max-wait", "3", environment=environment
    ) as router:  # its end finds processes that are left
        swaps = Swaps(router, models, seed)
        for quarter in range(NUM_QUARTERS):
            swaps.run(num_swaps * (quarter + 1) // NUM_QUARTERS)
            assert swaps.faults == [], router.log[-5000:]
            rests.append(swaps.rest(rests))
            print(f"\n{swaps.num_swaps} swaps: {rests[-1]}\n  {dict(swaps.counts)}")
        assert find_growth(rests) == []
        assert router.terminate() == 0
    assert list(temporary.rglob("*")) == []


def _save_model(folder: Path, number: int) -> Path:
    """Saves a tiny model whose answers differ from the other models' answers."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = save_tiny_llama(folder) / "model.safetensors"
    generator = torch.Generator().manual_seed(number)
    changed = {
        name: torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        for name, tensor in load_file(weights).items()
    }
    save_file(changed, weights, metadata={"format": "pt"})
    return folder
