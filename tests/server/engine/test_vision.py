"""Models that see images: greedy outputs equal to transformers' own, alone and among others, whole and in chunks."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from server.config import EngineConfig, ModelFiles, RendererConfig
from server.engine.model_loading import load_model
from server.engine.prompt_features import PromptFeaturesError
from server.engine.vision import VisionEncoder, image_encoder, language_model
from server.renderers.pool import InlineExecutor
from server.renderers.prompts import ChatOptions, RenderedPrompt
from server.renderers.vision import VisionRenderer
from server.types import PromptInputs, TensorData
from tests.server.engine.small_engine import SmallEngine
from tests.server.engine.tiny_vlm import FAMILIES, load_reference, save_vlm
from tests.server.engine.vlm_reference import generate_answer, image_url, writable

_NUM_TOKENS = 12


@dataclass
class Seeing:
    """A model of one family, twice: the engine's and the plain one."""

    renderer: VisionRenderer
    path: Path
    reference: PreTrainedModel

    def engine(self, **options: Any) -> SmallEngine:
        model = load_model(self.path, EngineConfig(dtype="float32"))
        return SmallEngine(model, **({"max_model_len": 1024} | options))

    def prompt(self, *parts: Any) -> RenderedPrompt:
        """Texts, and images as (width, height, seed)."""
        content = [{"type": "text", "text": p} if isinstance(p, str) else _part(*p) for p in parts]
        messages = [{"role": "user", "content": content}]
        return asyncio.run(self.renderer.render_chat_async(messages, ChatOptions()))

    def expected(self, prompt: RenderedPrompt, num_tokens: int = _NUM_TOKENS) -> list[int]:
        return generate_answer(self.reference, prompt, num_tokens)


@pytest.fixture(scope="module", params=FAMILIES)
def seeing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seeing:
    path = save_vlm(tmp_path_factory.mktemp("vlm"), request.param)
    renderer = VisionRenderer(ModelFiles(path, path), RendererConfig(), executor=InlineExecutor())
    return Seeing(renderer, path, load_reference(path))


def _part(width: int, height: int, seed: int) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": image_url(seed, width, height)}}


def _inputs(prompt: RenderedPrompt) -> PromptInputs | None:
    if prompt.inputs is None:
        return None
    return PromptInputs(mm={name: writable(data) for name, data in (prompt.inputs.mm or {}).items()})


def _add(engine: SmallEngine, name: str, prompt: RenderedPrompt, **params: Any) -> Any:
    return engine.add(
        name, prompt.token_ids, _inputs(prompt), **({"max_tokens": _NUM_TOKENS, "ignore_eos": True} | params)
    )


def test_what_is_said_depends_on_the_image(seeing: Seeing) -> None:
    a, b = (seeing.prompt("Look: ", (60, 60, seed)) for seed in (1, 2))
    assert a.token_ids == b.token_ids
    assert seeing.expected(a) != seeing.expected(b)


def test_one_image_is_answered_as_by_transformers(seeing: Seeing) -> None:
    engine, prompt = seeing.engine(), seeing.prompt("Look: ", (60, 60, 1), " What is it?")
    completion = _add(engine, "a", prompt)
    engine.run()
    assert completion.token_ids == seeing.expected(prompt)
    assert engine.runner.name == "packed"
    engine.assert_nothing_leaked()


def test_images_and_texts_share_batches(seeing: Seeing) -> None:
    engine = seeing.engine()
    prompts = [
        seeing.prompt("Look: ", (60, 60, 1)),
        seeing.prompt("Hello"),
        seeing.prompt((100, 60, 2), " and ", (80, 120, 3), "?"),
        seeing.prompt("A somewhat longer text without any image at all."),
        seeing.prompt((30, 200, 4), "x", (200, 30, 5)),
    ]
    completions = []
    for i, prompt in enumerate(prompts):
        completions.append(_add(engine, str(i), prompt))
        engine.step()
    engine.run()
    assert max(len(step) for step in engine.steps) == len(prompts)
    for prompt, completion in zip(prompts, completions, strict=True):
        assert completion.token_ids == seeing.expected(prompt)
    engine.assert_nothing_leaked()


def test_a_prompt_with_images_may_be_computed_in_chunks(seeing: Seeing) -> None:
    engine = seeing.engine(max_num_batched_tokens=16)
    prompts = [seeing.prompt("Look: ", (100, 60, 1), "?"), seeing.prompt("Hello there"), seeing.prompt((80, 80, 2))]
    completions = [_add(engine, str(i), prompt) for i, prompt in enumerate(prompts)]
    engine.run()
    assert max(sum(step.values()) for step in engine.steps) <= 16
    for prompt, completion in zip(prompts, completions, strict=True):
        assert completion.token_ids == seeing.expected(prompt)


def test_a_preempted_sequence_still_has_its_images(seeing: Seeing) -> None:
    prompts = [seeing.prompt("Look: ", (60, 60, seed)) for seed in (1, 2)]
    room = sum(len(prompt.token_ids) for prompt in prompts) + 10
    engine = seeing.engine(kv_cache_tokens=room, max_model_len=room)
    completions = [_add(engine, str(i), prompt) for i, prompt in enumerate(prompts)]
    engine.run()
    assert engine.stats.num_preemptions > 0
    for prompt, completion in zip(prompts, completions, strict=True):
        assert completion.token_ids == seeing.expected(prompt)


def test_another_image_is_not_found_in_the_prefix_cache(seeing: Seeing) -> None:
    engine = seeing.engine(prefix_tokens=2000)
    prompts = [seeing.prompt("Look at this image of mine: ", (60, 60, seed), "What is it?") for seed in (1, 2, 1)]
    for i, prompt in enumerate(prompts):
        completion = _add(engine, str(i), prompt)
        engine.run()
        assert completion.token_ids == seeing.expected(prompt)


def test_the_choices_of_one_prompt_look_once(seeing: Seeing, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, prompt = seeing.engine(prefix_tokens=2000), seeing.prompt("Look: ", (60, 60, 1))
    looks = 0
    encode = engine.core._features._encode_images
    assert encode is not None

    def count(*args: Any) -> Any:
        nonlocal looks
        looks += 1
        return encode(*args)

    monkeypatch.setattr(engine.core._features, "_encode_images", count)
    inputs = _inputs(prompt)
    completions = [
        engine.add(str(i), prompt.token_ids, inputs, max_tokens=_NUM_TOKENS, ignore_eos=True) for i in range(3)
    ]
    engine.run()
    assert looks == 1
    assert [c.token_ids for c in completions] == [seeing.expected(prompt)] * 3


def test_log_probabilities_of_a_prompt_with_images_can_be_told(seeing: Seeing) -> None:
    engine, prompt = seeing.engine(), seeing.prompt("Look: ", (60, 60, 1), " What?")
    completion = _add(engine, "a", prompt, prompt_logprobs=1)
    engine.run()
    assert completion.prompt_logprobs is not None
    assert len(completion.prompt_logprobs) == len(prompt.token_ids)
    assert completion.token_ids == seeing.expected(prompt)


def test_tensors_that_do_not_fit_are_refused_and_harm_nobody(seeing: Seeing) -> None:
    engine = seeing.engine()
    good, other = seeing.prompt("Look: ", (60, 60, 1)), seeing.prompt((60, 60, 1), (60, 60, 2))
    kept = _add(engine, "good", good)
    engine.step()
    wrong = engine.add("wrong", other.token_ids, _inputs(good))
    nonsense = engine.add("nonsense", good.token_ids, PromptInputs(mm={"x": _floats(3)}))
    engine.run()
    assert (wrong.finish_reason, nonsense.finish_reason) == ("error", "error")
    assert "do not fit" in str(wrong.error)
    assert kept.token_ids == seeing.expected(good)
    engine.assert_nothing_leaked()


def test_a_request_can_be_aborted_before_anybody_looked(seeing: Seeing) -> None:
    engine = seeing.engine()
    _add(engine, "a", seeing.prompt((60, 60, 1)))
    assert (engine.stats.num_waiting, engine.core.has_work) == (1, True)
    engine.core.abort(["a"])
    assert (engine.stats.num_waiting, engine.core.has_work) == (0, False)


def test_half_precision_sees_about_the_same(seeing: Seeing) -> None:
    inputs = _inputs(prompt := seeing.prompt("Look: ", (60, 60, 1), "?"))
    assert inputs is not None
    features = []
    for dtype in ("float32", "bfloat16"):
        model = load_model(seeing.path, EngineConfig(dtype=dtype))  # type: ignore[arg-type]
        features.append(VisionEncoder(model).encode(prompt.token_ids, inputs.mm or {}))
    exact, half = (f.embeds.float() for f in features)
    assert features[1].embeds.dtype == torch.bfloat16
    assert (half - exact).abs().max() < 0.1 * exact.abs().max()
    engine = SmallEngine(model, max_model_len=1024)
    completion = _add(engine, "a", prompt)
    engine.run()
    assert len(completion.token_ids) == _NUM_TOKENS


def test_only_the_language_model_attends_in_the_engines_way(seeing: Seeing) -> None:
    model = load_model(seeing.path, EngineConfig(dtype="float32"))
    SmallEngine(model)
    assert model.config.vision_config._attn_implementation in ("sdpa", "eager")
    assert language_model(model).config._attn_implementation == "vllm_cli_packed"


def test_a_language_model_that_is_given_more_than_embeddings_is_refused(
    seeing: Seeing, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(seeing.path, EngineConfig(dtype="float32"))
    encoder, prompt = VisionEncoder(model), seeing.prompt((60, 60, 1))
    run = encoder._run
    monkeypatch.setattr(encoder, "_run", lambda *args: run(*args) | {"deepstack_visual_embeds": torch.zeros(1)})
    inputs = _inputs(prompt)
    assert inputs is not None
    with pytest.raises(PromptFeaturesError, match="deepstack_visual_embeds"):
        encoder.encode(prompt.token_ids, inputs.mm or {})


def test_a_model_of_text_takes_no_images(llama: PreTrainedModel) -> None:
    assert image_encoder(llama) is None
    engine = SmallEngine(llama)
    refused = engine.add("a", [5, 6, 7], PromptInputs(mm={"pixel_values": _floats(3)}))
    engine.run()
    assert (refused.finish_reason, refused.error) == ("error", "this model takes no images")


def _floats(n: int) -> TensorData:
    return TensorData("float32", (n,), memoryview(bytearray(4 * n)))
