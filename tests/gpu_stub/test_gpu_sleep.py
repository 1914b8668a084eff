"""After a router's sleep and wake, a model has the same GPU memory, weights (byte for byte) and answers."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.gpu_stub.gpu_server import EAGER
from tests.gpu_stub.recipe_models import save_adapter
from tests.gpu_stub.sleeper import Sleeper

_AWAKE_BYTES = 60 << 30
_ASLEEP_BYTES = 2 << 30


def _adapted(server: Sleeper) -> Any:
    return server.generate(), server.generate(model="own")


def _embedding(server: Sleeper) -> Any:
    return server.post("/v1/embeddings", input=[server.PROMPT])["data"]


_RELEASES = ("--tensor-parallel-size", "3", "--sleep-mode-offload-cudagraph", "--enable-nccl-comm-suspend")
_LORA = ("--enable-lora", "--lora-modules", "own={folder}/adapter")


@pytest.mark.parametrize(("words", "num_gpus", "ask", "levels"), [
    pytest.param(EAGER[1:], 1, Sleeper.generate, (1, 2), id="compiled"),
    pytest.param((*EAGER[1:], *_RELEASES), 3, Sleeper.usage, (1, 2), id="graphs and NCCL of TP 3"),
    pytest.param((*EAGER, "--pipeline-parallel-size", "2"), 2, Sleeper.usage, (1, 2), id="PP 2"),
    pytest.param((*EAGER, "--data-parallel-size", "2"), 2, Sleeper.usage, (1, 2), id="DP 2"),
    pytest.param((*EAGER, *_LORA), 1, _adapted, (1,), id="LoRA"),
    pytest.param((*EAGER, "--runner", "pooling", "--convert", "embed"), 1, _embedding, (1,), id="pooling"),
])  # fmt: skip
def test_a_model_is_after_its_sleep_as_before(tmp_path, sockets, words, num_gpus, ask, levels):
    words = tuple(word.format(folder=tmp_path) if "{" in word else word for word in words)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter")
    with Sleeper(*words, folder=tmp_path, socket_folder=sockets, num_gpus=num_gpus) as server:
        _assert_unchanged(server.wait_ready(), ask, levels)
        server.sleep(levels[0])
        assert server.terminate(signal.SIGTERM) == 0
    assert "EngineHangError" not in server.log
    assert "ERROR" not in server.log


def _assert_unchanged(server: Sleeper, ask: Callable[[Sleeper], Any], levels: tuple[int, ...]) -> None:
    expected, weights = ask(server), server.weights()
    for level in levels * 2:
        awake = server.used_bytes()
        server.sleep(level)
        assert max(server.used_bytes()) < _ASLEEP_BYTES
        assert server.health() == 200
        server.wake()
        assert min(server.used_bytes()) > min(min(awake), _AWAKE_BYTES) - _ASLEEP_BYTES
        assert server.weights() == weights
        assert ask(server) == expected
