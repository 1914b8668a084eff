"""LoRA adapters in the engine give peft's outputs token for token, alone and in mixed batches."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from server.terms.config import LoraConfig
from tests.server.engine.lora.peft_adapters import adapted_outputs, save_adapter
from tests.server.engine.small_engine import SmallEngine
from tests.server.engine.tiny_models import PACKED, SEQUENTIAL, build_model, random_prompts
from tests.support.tiers import slow_but_for, thorough_but_for

PROMPTS = [[5, 17, 99, 3, 42], [7, 7, 8], [64, 2, 33, 90, 11, 12, 80, 4], [100, 101]]
_LIMITS = LoraConfig(enable_lora=True, max_loras=3, max_lora_rank=8)
_KINDS: dict[str, dict[str, Any]] = {
    "list": {"target_modules": ["q_proj", "v_proj"]},
    "regex": {"target_modules": r".*\.[12]\.mlp\.(gate|down)_proj"},
    "rslora": {"use_rslora": True, "r": 8},
    "patterns": {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 8}, "alpha_pattern": {"o_proj": 3}},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "embedding": {"target_modules": ["embed_tokens", "o_proj"]},
}
_TARGETS = {
    "mamba": ["in_proj", "x_proj"],
    "falcon_h1": ["in_proj", "q_proj", "down_proj"],
    "qwen3_moe": ["q_proj", "o_proj"],
    "mixtral": ["k_proj", "o_proj"],
    "deepseek_v3": ["q_a_proj", "kv_b_proj", "o_proj"],
}
"""The layers to adapt of models of which peft cannot adapt all linear layers, or would adapt experts."""


_ARCHITECTURES = {**PACKED, **SEQUENTIAL}
_FAST = ("llama", "gpt2", "mamba")
_THOROUGH = ("gemma2", "mixtral", "deepseek_v3", "falcon_h1")
"""Architectures with other layers than those in `_FAST`, or with their own attention."""


@pytest.fixture
def adapter(plain_llama: PreTrainedModel, tmp_path: Path) -> Path:
    return save_adapter(plain_llama, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])


@pytest.fixture
def engine(llama: PreTrainedModel) -> SmallEngine:
    return SmallEngine(llama, lora=_LIMITS)


@pytest.mark.parametrize("kind", _KINDS)
def test_each_kind_of_adapter_equals_peft(kind, engine, plain_llama, tmp_path):
    folder = save_adapter(plain_llama, tmp_path, **_KINDS[kind])
    assert engine.load_adapter(1, folder) is None
    expected = adapted_outputs(plain_llama, folder, PROMPTS, 12)
    assert engine.generate(PROMPTS, max_tokens=12, adapter_id=1) == expected
    assert expected != adapted_outputs(plain_llama, None, PROMPTS, 12)


@pytest.mark.parametrize(
    "architecture",
    [*_FAST, *thorough_but_for(_THOROUGH), *slow_but_for(n for n in _ARCHITECTURES if n not in _FAST + _THOROUGH)],
)
def test_a_mixed_batch_equals_peft(architecture, tmp_path):
    model = build_model(architecture, _ARCHITECTURES[architecture])
    engine = SmallEngine(copy.deepcopy(model), lora=_LIMITS, sequential=architecture in SEQUENTIAL)
    model.set_attn_implementation("eager")  # sdpa ignores Gemma 2's soft cap
    targets = {"target_modules": _TARGETS.get(architecture, "all-linear")}
    folders = {i: save_adapter(model, tmp_path / str(i), seed=i, r=4 * i, **targets) for i in (1, 2)}
    for adapter_id, path in folders.items():
        assert engine.load_adapter(adapter_id, path) is None
    added = {}
    for i, adapter_id in enumerate([0, 1, 2, 0, 1, 2, 2, 1, 0, 0, 1, 2]):
        position = i // 3
        added[adapter_id, position] = engine.add(str(i), PROMPTS[position], max_tokens=10, adapter_id=adapter_id)
        engine.step()
    engine.run()
    engine.assert_nothing_leaked()
    for adapter_id in (0, 1, 2):
        positions = [position for owner, position in added if owner == adapter_id]
        expected = adapted_outputs(model, folders.get(adapter_id), [PROMPTS[p] for p in positions], 10)
        assert [added[adapter_id, p].token_ids for p in positions] == expected


def test_prompt_logprobs_and_sampled_rows_see_the_adapter(engine, plain_llama, tmp_path):
    """The head computes the rows of a whole prompt and a single sampled row in the same step."""
    folder = save_adapter(plain_llama, tmp_path, target_modules=["lm_head", "v_proj"])
    assert engine.load_adapter(1, folder) is None
    alone = engine.complete([PROMPTS[2]], max_tokens=3, adapter_id=1, prompt_logprobs=1)[0]
    base = engine.add("base", PROMPTS[0], max_tokens=3, prompt_logprobs=1)
    mixed = engine.add("mixed", PROMPTS[2], max_tokens=3, adapter_id=1, prompt_logprobs=1)
    engine.run()
    assert mixed.token_ids == alone.token_ids
    for a, b in zip(mixed.prompt_logprobs or (), alone.prompt_logprobs or (), strict=True):
        assert (a and a.logprob) == pytest.approx(b and b.logprob, abs=1e-4)
    assert base.token_ids == adapted_outputs(plain_llama, None, [PROMPTS[0]], 3)[0]


def test_an_adapter_changes_packed_layers(tmp_path):
    model = build_model("llama", PACKED["llama"], dtype=torch.bfloat16)
    folder = save_adapter(model, tmp_path)
    engine = SmallEngine(model, lora=_LIMITS)
    assert engine.load_adapter(1, folder) is None

    def logprobs(adapter_id: int) -> list[float]:
        completion = engine.complete([PROMPTS[2]], max_tokens=1, adapter_id=adapter_id, prompt_logprobs=1)[0]
        return [entry.logprob for entry in completion.prompt_logprobs or () if entry is not None]

    plain = logprobs(1)
    for _ in engine.core.prepare():
        pass
    assert logprobs(1) == pytest.approx(plain, abs=0.1)
    assert logprobs(0) != pytest.approx(plain, abs=0.3)


def test_a_long_prompt_in_chunks_equals_peft(plain_llama, adapter):
    prompts = random_prompts(90, 70)
    engine = SmallEngine(copy.deepcopy(plain_llama), lora=_LIMITS, max_num_batched_tokens=32)
    assert engine.load_adapter(1, adapter) is None
    assert engine.generate(prompts, adapter_id=1) == adapted_outputs(plain_llama, adapter, prompts, 16)


def test_adapters_do_not_share_cached_prefixes(plain_llama, adapter):
    engine = SmallEngine(copy.deepcopy(plain_llama), lora=_LIMITS, prefix_tokens=512)
    other = save_adapter(plain_llama, adapter.parent / "other", seed=5)
    assert engine.load_adapter(1, adapter) is None
    assert engine.load_adapter(2, other) is None
    prompt = random_prompts(60)
    for adapter_id, folder in {0: None, 1: adapter, 2: other}.items():
        first, again = (engine.complete(prompt, adapter_id=adapter_id)[0] for _ in range(2))
        assert (first.num_cached_tokens, again.num_cached_tokens) == (0, 48)
        assert first.token_ids == again.token_ids == adapted_outputs(plain_llama, folder, prompt, 16)[0]


def test_running_sequences_share_prefixes_only_with_their_adapter(plain_llama, adapter):
    engine = SmallEngine(copy.deepcopy(plain_llama), lora=_LIMITS, prefix_tokens=512)
    assert engine.load_adapter(1, adapter) is None
    prompt = random_prompts(60)[0]
    added = [engine.add(str(i), prompt, adapter_id=i % 2) for i in range(4)]
    engine.run()
    assert [c.num_cached_tokens for c in added] == [0, 0, 48, 48]
    expected = [adapted_outputs(plain_llama, folder, [prompt], 16)[0] for folder in (None, adapter)]
    assert [c.token_ids for c in added] == expected * 2


def test_a_batch_has_at_most_max_loras_adapters(plain_llama, adapter):
    engine = SmallEngine(copy.deepcopy(plain_llama), lora=LoraConfig(enable_lora=True, max_loras=1, max_cpu_loras=2))
    for adapter_id in (1, 2):
        assert engine.load_adapter(adapter_id, adapter) is None
    for request_id, adapter_id in {"first": 1, "held back": 2, "passes": 0, "same": 1}.items():
        engine.add(request_id, PROMPTS[0], max_tokens=4, adapter_id=adapter_id)
    engine.step()
    assert engine.steps[0].keys() == {"first", "passes", "same"}
    assert engine.stats.running_adapters == ("adapter-1",)
    assert engine.stats.waiting_adapters == ("adapter-2",)
    engine.run()
    assert all(c.finish_reason == "length" for c in engine.completions.values())


def test_adapters_beyond_max_cpu_loras_are_refused(plain_llama, adapter):
    engine = SmallEngine(copy.deepcopy(plain_llama), lora=LoraConfig(enable_lora=True, max_cpu_loras=2))
    assert [engine.load_adapter(adapter_id, adapter) for adapter_id in (1, 2)] == [None, None]
    assert "--max-cpu-loras 2 adapters are in memory. Only `--engine vllm`" in (engine.load_adapter(3, adapter) or "")
    engine.unload_adapter(1)
    assert engine.load_adapter(3, adapter) is None


def test_a_replaced_adapter_does_not_count(plain_llama, adapter):
    engine = SmallEngine(copy.deepcopy(plain_llama), lora=LoraConfig(enable_lora=True, max_cpu_loras=1))
    assert engine.adapters is not None
    for adapter_id in (1, 2):
        engine.adapters.add(adapter_id, "same name", adapter)
    engine.unload_adapter(1)
    assert len(engine.adapters._registered) == 1


def test_an_unloaded_adapter_is_freed_after_its_last_sequence(engine, adapter):
    assert engine.load_adapter(1, adapter) is None
    expected = engine.generate([PROMPTS[0]], adapter_id=1)[0]
    running = engine.add("running", PROMPTS[0], adapter_id=1)
    engine.step()
    engine.unload_adapter(1)
    rejected = engine.add("late", PROMPTS[0], adapter_id=1)
    assert rejected.error == "its LoRA adapter has been unloaded"
    assert engine.adapters is not None
    assert len(engine.adapters._registered) == 1
    engine.run()
    assert running.token_ids == expected
    assert len(engine.adapters._registered) == 0
    assert not engine.adapted._updates
    assert engine.generate([PROMPTS[0]]) != [expected]


def test_an_aborted_sequence_frees_its_unloaded_adapter(engine, adapter):
    assert engine.load_adapter(1, adapter) is None
    engine.add("aborted", PROMPTS[0], adapter_id=1)
    engine.unload_adapter(1)
    engine.core.abort(["aborted"])
    assert engine.adapters is not None
    assert len(engine.adapters._registered) == 0


def test_torch_files_are_read_without_unpickling_code(engine, plain_llama, adapter):
    expected = adapted_outputs(plain_llama, adapter, PROMPTS, 16)
    tensors = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(tensors, adapter / "adapter_model.bin")
    assert engine.load_adapter(1, adapter) is None
    assert engine.generate(PROMPTS, adapter_id=1) == expected
    torch.save({"code": Path("/")}, adapter / "adapter_model.bin")
    assert "adapter_model.bin cannot be loaded: UnpicklingError" in str(engine.load_adapter(2, adapter))


def test_the_weights_are_rounded_to_the_adapters_type(plain_llama, adapter):
    limits = LoraConfig(enable_lora=True, lora_dtype="bfloat16")
    engine = SmallEngine(copy.deepcopy(plain_llama), lora=limits)
    assert engine.load_adapter(1, adapter) is None
    update = engine.adapted._updates["model.layers.0.self_attn.q_proj"][1]
    stored = load_file(adapter / "adapter_model.safetensors")
    original = stored["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
    assert update.down.dtype == torch.float32
    assert torch.equal(update.down, original.bfloat16().float())


def _change_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _change_tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        save_file(change(load_file(path)), path)

    return apply


def _save_with_torch(content: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / "adapter_model.safetensors").unlink()
        torch.save(content, folder / "adapter_model.bin")

    return apply


_Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda folder: shutil.rmtree(folder), "there is no adapter_config.json in"),
    "not JSON": (lambda f: (f / "adapter_config.json").write_text("this is not json"), "malformed"),
    "field": (_change_config(r="four"), r"`\$.r`"),
    "rank": (_change_config(r=1024), "LoRA rank 1024 is greater than max_lora_rank 8"),
    "pattern rank": (_change_config(rank_pattern={"q_proj": 9}), "LoRA rank 9 is greater than max_lora_rank 8"),
    "zero rank": (_change_config(r=0), "the LoRA rank 0 is not positive"),
    "other rank": (_change_config(r=2), r"has a rank of 2, 96 inputs and .* are \[4, 96\]"),
    "pattern": (_change_config(rank_pattern={"(": 4}), "'\\(' is not a regular expression"),
    "DoRA": (_change_config(use_dora=True), "does not yet support DoRA"),
    "bias": (_change_config(bias="all"), "bias is 'all'"),
    "PiSSA": (_change_config(init_lora_weights="pissa"), "init_lora_weights='pissa'"),
    "saved modules": (_change_config(modules_to_save=["lm_head"]), r"Unsupported modules_to_save: \['lm_head'\]"),
    "kind": (_change_config(peft_type="IA3"), "peft_type is 'IA3'"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "contains no adapter_model.safetensors"),
    "not tensors": (_save_with_torch({"lora_A": 1}), "are not tensors by name"),
    "deep": (lambda f: (f / "adapter_config.json").write_text('{"use_bdlora": ' + "[" * 100_000), "not an adapter's"),
    "truncated": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x10"), "safetensors is broken"),
    "half": (_change_tensors(lambda t: {k: v for k, v in t.items() if k != _Q}), "not those of a LoRA adapter"),
    "names": (_change_tensors(lambda t: {"weight": torch.ones(1)}), "not those of a LoRA adapter: weight"),
    "modules": (
        _change_tensors(lambda t: {k.replace("q_proj", "c_attn"): v for k, v in t.items()}),
        "is not for LlamaForCausalLM, which has no model.layers.0.self_attn.c_attn",
    ),
    "shapes": (_change_tensors(lambda t: t | {_Q: torch.ones(4, 63)}), r"does not fit the model: .*\[4, 63\]"),
    "norm": (
        _change_tensors(lambda t: {k.replace("self_attn.q_proj", "input_layernorm"): v for k, v in t.items()}),
        "modules of LlamaForCausalLM that adapters cannot change here: model.layers.0.input_layernorm",
    ),
}


@pytest.mark.parametrize("fault", _FAULTS)
def test_a_faulty_adapter_is_refused(fault, engine, adapter):
    spoil, message = _FAULTS[fault]
    spoil(adapter)
    error = engine.load_adapter(1, adapter)
    assert error is not None
    with pytest.raises(ValueError, match=message):
        raise ValueError(error)
    assert engine.add("0", PROMPTS[0], adapter_id=1).error == "its LoRA adapter has been unloaded"


def test_an_adapter_of_experts_is_refused(tmp_path):
    model = build_model("qwen3_moe", PACKED["qwen3_moe"])
    engine = SmallEngine(copy.deepcopy(model), lora=_LIMITS)
    assert "experts" in str(engine.load_adapter(1, save_adapter(model, tmp_path)))


def test_without_enable_lora_no_adapter_is_loaded(llama, adapter):
    engine = SmallEngine(llama)
    assert engine.load_adapter(1, adapter) == "LoRA is not enabled: start with --enable-lora"
