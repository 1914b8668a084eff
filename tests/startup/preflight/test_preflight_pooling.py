"""A pooling model has no KV cache, so the checks require no memory for one."""

import pytest

from base.machine.memory import MemoryState
from server.config import EngineConfig
from startup.preflight.checkpoint import read_checkpoint
from startup.preflight.model_shape import read_model_shape
from tests.server.engine.pooling.tiny_poolers import save_pooler, save_sentence_files

MIB = 1 << 20


def test_an_encoder_passes_every_check(tmp_path, preflight):
    save_pooler(tmp_path, "bert")
    save_sentence_files(tmp_path)
    assert preflight(tmp_path, memory=MemoryState(600 * MIB, 800 * MIB)).findings == ()


@pytest.mark.parametrize(("options", "has_cache"), [({}, True), ({"runner": "pooling"}, False)])
def test_a_language_model_that_pools_needs_no_cache(model_path, options, has_cache):
    shape = read_model_shape(read_checkpoint(model_path), EngineConfig(**options))  # type: ignore[arg-type]
    assert bool(shape.kv_bytes_per_token) is has_cache
