"""A packed step mixes no CPU tensors with GPU tensors.

Uses fake tensors with a GPU device: it needs a torch built with CUDA, but no GPU.
"""

from collections.abc import Iterator

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from server.engine.compute import fused_attention
from server.engine.compute.packed_runner import PackedRunner
from server.engine.memory.kv_cache import KVCache
from server.engine.sequence import Chunk
from tests.server.engine.teacher_forcing import as_sequences
from tests.server.engine.tiny_models import PACKED, VOCAB

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")


@pytest.fixture(autouse=True)
def _claimed_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(fused_attention, "_capability", lambda device: (9, 0))
    with FakeTensorMode(), torch.device("cuda"):
        yield


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gpt2", "opt", "qwen3"])
def test_step_stays_on_the_gpu(architecture, dtype):
    config = CONFIG_MAPPING[architecture](**({"vocab_size": VOCAB} | PACKED[architecture]))
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    runner = PackedRunner(model)
    with torch.device("cpu"):
        cache = KVCache(runner.probe(), num_slots=6, slot_len=128, dtype=dtype, device=model.device)
        runner.use_cache(cache, None)
        sequences = as_sequences([[3] * length for length in (40, 5, 17, 9)])
        for sequence, slot in zip(sequences, (4, 0, 2, 5), strict=True):
            sequence.slot = slot
        for counts in ((37, 2, 0, 0), (1, 1, 10, 0), (1, 0, 6, 8), (1, 1, 1, 1)):
            result = runner.step([Chunk(s, n) for s, n in zip(sequences, counts, strict=True) if n])
            assert result.logits.device.type == "cuda"
            for chunk in result.chunks:
                chunk.sequence.num_computed_tokens = chunk.end
        cache.restore(3, cache.snapshot(0, 5), 5)
        cache.copy_prefix(0, 1, 5)
        cache.release(0, 5)
