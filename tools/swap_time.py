"""Times the starts of a server with many models (`vllm-cli serve --models`), and its /health meanwhile.

    .venv/bin/python -m tools.swap_time wake .peers/model --engine embedded
    .venv/bin/python -m tools.swap_time wake .peers/model --engine embedded --idle-warm off --rounds 5
    .venv/bin/python -m tools.swap_time swap .peers/model --engine embedded
    .venv/bin/python -m tools.swap_time health .peers/model --engine embedded --seconds 60
    .venv/bin/python -m tools.swap_time memory .peers/model --engine embedded

wake    a request for a stopped model → its first token
swap    a request for model B while A runs and there is room for one → first token of B
health  three models in turns with room for one, four clients: latency of /health, probed 50 times a second
memory  PSS of the router with 50 stopped models, and of its standby

All further words are those of `vllm-cli serve`. With vLLM, its environment's Python runs this module, from a
clone with PYTHONPATH=$PWD: without it, the forkserver of a cold start cannot import this package.
"""

import argparse
import itertools
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psutil

from server.machine.processes import pss_bytes
from tools.served_requests import ask_json, is_standby_ready, print_times, run_server, time_first_token, wait_for
from vllm_cli.bench.probe import HealthProbe
from vllm_cli.client.server_processes import TEMPLATE_COMMAND, command_words

_MIN_STAY_S = 3.0
"""Longer than a model stays at least, so that no swap waits for that."""
_NUM_CLIENTS = 4


def main() -> None:
    """Prints the figures of one kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("wake", "swap", "health", "memory"))
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60)
    options, words = parser.parse_known_args()
    match options.what:
        case "wake":
            with _Router.run(options.model, 1, words) as router:
                time_first_token(router.port, "m0")  # fills the page cache
                print_times([router.time_wake() for _ in range(options.rounds)])
        case "swap":
            with _Router.run(options.model, 2, [*words, "--max-running", "1"]) as router:
                time_first_token(router.port, "m0")
                print_times([router.time_swap(f"m{(number + 1) % 2}") for number in range(options.rounds)])
        case "health":
            with _Router.run(options.model, 3, [*words, "--max-running", "1"]) as router:
                router.print_health(options.seconds)
        case "memory":
            with _Router.run(options.model, 50, words) as router:
                router.print_memory()


class _Router:
    """A running router with several entries of the same model: m0, m1 …"""

    def __init__(self, pid: int, port: int, *, has_standby: bool) -> None:
        self.pid = pid
        self.port = port
        self._has_standby = has_standby

    @classmethod
    @contextmanager
    def run(cls, model: str, num_models: int, words: list[str]) -> Iterator[Self]:
        """Ends it at the end of the block."""
        models = {f"m{number}": {"model": str(Path(model).resolve())} for number in range(num_models)}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "models.yaml"
            file.write_text(json.dumps({"models": models}))  # JSON is YAML
            with run_server(["--models", str(file), *words]) as (server, port):
                router = cls(server.pid, port, has_standby="off" not in words)
                wait_for(router._is_listening, "the router listens")
                router.settle()
                yield router

    def settle(self) -> None:
        """Waits until the standby has done its imports."""
        wait_for(lambda: not self._has_standby or is_standby_ready(self.pid), "the standby is ready")
        time.sleep(1.0)

    def time_wake(self) -> float:
        """A request for the stopped model."""
        status, answer, _ = ask_json(self.port, "/v1/models/m0/unload", "POST")
        assert status == 200, answer
        assert self.models()[0]["status"] == "stopped"
        self.settle()
        return time_first_token(self.port, "m0")

    def time_swap(self, model: str) -> float:
        """A request for this model while the other one runs and is idle."""
        time.sleep(_MIN_STAY_S)
        self.settle()
        (running,) = [each["id"] for each in self.models() if each["status"] == "ready"]
        assert running != model
        return time_first_token(self.port, model)

    def models(self) -> list[dict[str, Any]]:
        """The data of the status page."""
        models: list[dict[str, Any]] = ask_json(self.port, "/status.json")[1]["models"]
        return models

    def print_health(self, seconds: float) -> None:
        """Probes while clients request the models in turns."""
        end_s = time.monotonic() + seconds
        times: list[float] = []

        def request_in_turns(first: int) -> None:
            for number in itertools.count(first):
                if time.monotonic() > end_s:
                    return
                times.append(time_first_token(self.port, f"m{number % 3}"))

        with HealthProbe(wants_realtime=True) as probe:
            probe.start(f"http://127.0.0.1:{self.port}")
            threads = [threading.Thread(target=request_in_turns, args=(n,)) for n in range(_NUM_CLIENTS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            samples = probe.finish()
        latencies = sorted(each / 1e6 for each in samples.latencies_ns)
        p50, p99 = (latencies[int(share * (len(latencies) - 1))] for share in (0.5, 0.99))
        starts = sum(model["num_starts"] for model in self.models())
        print(f"{starts} starts, {len(times)} requests, {len(latencies)} probes, {samples.num_errors} failed")
        print(f"/health p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {latencies[-1]:.2f} ms")

    def print_memory(self) -> None:
        """Once all is settled."""
        children = psutil.Process(self.pid).children(recursive=True)
        commands = ("standby", TEMPLATE_COMMAND)
        standby = [p for p in children if any(command_words(p, word) is not None for word in commands)]
        others = [p for p in children if p not in standby]
        print(f"router {pss_bytes(self.pid) / 2**20:.1f} MiB, {len(others)} other processes")
        print(f"standby {sum(pss_bytes(p.pid) for p in standby) / 2**20:.1f} MiB, {len(standby)} processes")

    def _is_listening(self) -> bool:
        try:
            return ask_json(self.port, "/livez")[0] == 200
        except OSError:
            return False


if __name__ == "__main__":
    main()
