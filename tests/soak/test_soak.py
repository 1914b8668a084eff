"""Memory, files, threads and processes of a server do not grow under mixed load, and no request is lost.

Four times, a quarter of the time is load of all kinds, and then comes a pause.
"""

import time

import pytest

from tests.e2e.request_fuzzer import MODEL
from tests.e2e.server_process import ServerProcess
from tests.soak.held import Held, find_growth, measure, settle
from tests.soak.mixed_load import MixedLoad
from tests.waiting import wait_until

PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses", "/tokenize", "/detokenize")
SETTINGS = (
    # Small caches are full after the first quarter; bursts overflow a short queue.
    *("--kv-cache-memory-bytes", "256M", "--max-num-queued-reqs", "48", "--max-logprobs", "-1"),
    *("--served-model-name", MODEL, "--max-model-len", "2048", "--override-generation-config.max_new_tokens", "16"),
    "--disable-uvicorn-access-log",
)
NUM_QUARTERS = 4


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_nothing_grows_under_mixed_load_and_nothing_is_lost(model_path, pytestconfig):
    minutes, seed = pytestconfig.getoption("--minutes", 0.7), pytestconfig.getoption("--seed", 0)
    rests: list[Held] = []
    with ServerProcess([str(model_path), *SETTINGS]) as server:
        for quarter in range(NUM_QUARTERS):
            with MixedLoad(server, *PATHS, seed=seed + quarter) as load:
                time.sleep(minutes * 60 / NUM_QUARTERS)
            rests.append(settle(lambda: measure(server.family()), rests))
            print(f"\nquarter {quarter + 1}: {rests[-1]}\n  {dict(load.counts)}")
            assert load.faults == []
            assert load.counts["answered"]
            assert load.counts["burst: 503"]
        assert find_growth(rests) == []
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
            wait_until(lambda name=name: server.metric(name) == 0)
        assert server.health() == 200
        assert "Traceback" not in server.log
