"""`python -m tools.soak` on a real server, for less than a minute: shows that its parts work together."""

import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.llamas import save_tiny_llama
from tools.soak.bodies import BAD, GOOD
from tools.soak.results import Gauges, SoakResult

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_real_server_is_asked_for_everything_and_gives_everything_back(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path / "tiny")
    limits = ("--trust-request-chat-template", "--kv-cache-memory-bytes", "8M", "--max-num-queued-reqs", "48")
    served = shlex.join([sys.executable, "-m", "vllm_cli", "serve", str(folder), "--host", "127.0.0.1", *limits])
    words = ("--minutes", "0.7", "--warm-up", "50%", "--sample-interval", "1", "--burst-interval", "5")
    sizes = ("--prompt-tokens", "200", "--max-tokens", "16", "--max-growth", "50%")
    command = [sys.executable, "-m", "tools.soak", "--cmd", served, *words, *sizes, "--json", "-"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    result = msgspec.json.decode(run.stdout, type=SoakResult)
    assert result.settings.left_out == []
    assert {*GOOD, *BAD, "vanishing", "malformed", "pipelined", "slow reader", "burst"} <= set(result.endings)
    assert result.gauges == Gauges(num_running=0, num_waiting=0, kv_cache_usage=0)
    assert result.endings["burst"]["shed"] > 0
    assert {"server", "engine", "forkserver", "template renderer"} <= {who for s in result.samples for who in s.groups}
