"""Compares batches with LoRA adapters to batches of the base model: `python -m tools.lora_speed MODEL`.

All batches decode eight sequences in one thread. They take turns and the processor's time counts, so that
other programs on the machine disturb little. The last column is the speed of a base request in such a batch,
relative to a batch of base requests.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

import torch
from transformers import AutoModelForCausalLM

from server.engine.compute.linear import LinearPacker
from server.lora_config import LoraConfig
from tests.server.engine.lora.peft_adapters import save_adapter
from tests.server.engine.small_engine import SmallEngine

_BATCHES: Final = {
    "base only": [0] * 8,
    "4 base, 4 of one adapter": [0, 1] * 4,
    "4 base, 4 of one adapter of q and v": [0, 2] * 4,
    "7 base, 1 of an adapter": [0] * 7 + [1],
    "2 base, 2 of each of 3 adapters": [0, 1, 3, 4] * 2,
}
_TARGETS: Final = ("all-linear", ["q_proj", "v_proj"], "all-linear", "all-linear")
_NUM_TOKENS: Final = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine = _build_engine(options.model, getattr(torch, options.dtype), options.rank)
    steps: dict[str, list[float]] = {name: [] for name in _BATCHES}
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        for name, adapter_ids in _BATCHES.items():
            steps[name].append(_time_step(engine, adapter_ids))
    base_ms = statistics.median(steps["base only"])
    print(f"{'batch':38s} {'ms per step':>11s} {'relative':>9s}   (medians of {len(steps['base only'])})")
    for name, times in steps.items():
        print(f"{name:38s} {statistics.median(times):11.2f} {base_ms / statistics.median(times):9.2f}")


def _build_engine(path: Path, dtype: torch.dtype, rank: int) -> SmallEngine:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    lora = LoraConfig(enable_lora=True, max_loras=len(_TARGETS), max_lora_rank=512)
    engine = SmallEngine(model, max_model_len=128, lora=lora)
    with tempfile.TemporaryDirectory() as folder:
        for adapter_id, targets in enumerate(_TARGETS, start=1):
            saved = save_adapter(model, Path(folder, str(adapter_id)), seed=adapter_id, r=rank, target_modules=targets)
            assert engine.load_adapter(adapter_id, saved) is None
    packer = LinearPacker(model)
    while packer.pack_next():
        pass
    return engine


def _time_step(engine: SmallEngine, adapter_ids: list[int]) -> float:
    """Milliseconds of a decoding step."""
    for i, adapter_id in enumerate(adapter_ids):
        prompt = list(range(20 + i, 24 + i))
        engine.add(str(len(engine.completions)), prompt, max_tokens=_NUM_TOKENS, adapter_id=adapter_id, ignore_eos=True)
    engine.step()
    num_steps = 0
    begin = time.process_time()
    while engine.core.has_work:
        engine.step()
        num_steps += 1
    return 1000 * (time.process_time() - begin) / num_steps


if __name__ == "__main__":
    main()
