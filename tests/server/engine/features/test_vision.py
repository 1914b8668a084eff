"""Vision models give transformers' greedy outputs, alone and in batches, whole and in chunks."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from server.engine.model_loading import load_model
from server.engine.prompt_features import PromptFeaturesError
from server.engine.vision import VisionEncoder, image_encoder
from server.terms.config import EngineConfig, ModelFiles, RendererConfig
from server.terms.types import PromptInputs, TensorData
from server.text.renderers.prompts import ChatOptions, RenderedPrompt
from server.text.renderers.renderer import Renderer
from tests.server.engine.features.tiny_vlm import (
    FAMILIES,
    generate_answer,
    image_url,
    load_reference,
    render_with_images,
    save_vlm,
    writable,
)
from tests.server.engine.small_engine import SmallEngine
from tests.server.inline_executor import InlineExecutor

pytestmark = pytest.mark.thorough

_NUM_TOKENS = 6


@dataclass
class VisionCase:
    """A model of one family, its renderer and the plain model as a reference."""

    renderer: Renderer
    path: Path
    reference: PreTrainedModel

    def engine(self, **options: Any) -> SmallEngine:
        model = load_model(self.path, EngineConfig(dtype="float32"))
        return SmallEngine(model, **({"max_model_len": 1024} | options))

    def prompt(self, *parts: Any) -> RenderedPrompt:
        """Renders a prompt of texts and of images given as (width, height, seed)."""
        content = [{"type": "text", "text": p} if isinstance(p, str) else _part(*p) for p in parts]
        messages = [{"role": "user", "content": content}]
        return asyncio.run(render_with_images(self.renderer, messages, ChatOptions()))

    def expected(self, prompt: RenderedPrompt, num_tokens: int = _NUM_TOKENS) -> list[int]:
        return generate_answer(self.reference, prompt, num_tokens)


@pytest.fixture(scope="module", params=FAMILIES)
def vision(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VisionCase:
    """A model of each family, for tests whose result depends on the model."""
    return _case(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> VisionCase:
    """A model whose positions have several axes, for tests that need only one model."""
    return _case(tmp_path_factory, "qwen2_vl")


def _case(tmp_path_factory: pytest.TempPathFactory, family: str) -> VisionCase:
    path = save_vlm(tmp_path_factory.mktemp("vlm"), family)
    renderer = Renderer(ModelFiles(path, path), RendererConfig(), executor=InlineExecutor())
    return VisionCase(renderer, path, load_reference(path))


def _part(width: int, height: int, seed: int) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": image_url(seed, width, height)}}


def _inputs(prompt: RenderedPrompt) -> PromptInputs | None:
    if prompt.inputs is None:
        return None
    return PromptInputs(mm={name: writable(data) for name, data in (prompt.inputs.mm or {}).items()})


def _tensors(prompt: RenderedPrompt) -> dict[str, TensorData]:
    inputs = _inputs(prompt)
    assert inputs is not None and inputs.mm is not None
    return inputs.mm


def _vision_tower(model: PreTrainedModel) -> torch.nn.Module:
    inner = model.base_model
    return next(getattr(inner, name) for name in ("vision_tower", "vision_model", "visual") if hasattr(inner, name))


def _add(engine: SmallEngine, name: str, prompt: RenderedPrompt, **params: Any) -> Any:
    return engine.add(
        name, prompt.token_ids, _inputs(prompt), **({"max_tokens": _NUM_TOKENS, "ignore_eos": True} | params)
    )


@pytest.mark.parametrize("budget", [512, 16], ids=["whole", "in chunks"])
def test_prompts_with_images_and_texts_share_batches(vision, budget):
    engine = vision.engine(max_num_batched_tokens=budget)
    a, b = (vision.prompt("Look: ", (60, 60, seed)) for seed in (1, 2))
    assert a.token_ids == b.token_ids
    assert vision.expected(a) != vision.expected(b), "the output depends on the image"
    prompts = [
        vision.prompt("Look: ", (60, 60, 1)),
        vision.prompt("Hello"),
        vision.prompt((100, 60, 2), " and ", (80, 120, 3), "?"),
        vision.prompt("A somewhat longer text without any image at all."),
        vision.prompt((30, 200, 4), "x", (200, 30, 5)),
    ]
    completions = []
    for i, prompt in enumerate(prompts):
        completions.append(_add(engine, str(i), prompt))
        engine.step()
    engine.run()
    assert engine.runner.name == "packed"
    assert max(sum(step.values()) for step in engine.steps) <= budget
    assert budget == 16 or max(len(step) for step in engine.steps) == len(prompts)
    for prompt, completion in zip(prompts, completions, strict=True):
        assert completion.token_ids == vision.expected(prompt)
    engine.assert_nothing_leaked()


def test_a_preempted_sequence_keeps_its_images(qwen):
    prompts = [qwen.prompt("Look: ", (60, 60, seed)) for seed in (1, 2)]
    room = sum(len(prompt.token_ids) for prompt in prompts) + 10
    engine = qwen.engine(kv_cache_tokens=room, max_model_len=room)
    completions = [_add(engine, str(i), prompt) for i, prompt in enumerate(prompts)]
    engine.run()
    assert engine.stats.num_preemptions > 0
    for prompt, completion in zip(prompts, completions, strict=True):
        assert completion.token_ids == qwen.expected(prompt)


def test_another_image_does_not_match_the_prefix_cache(qwen):
    engine = qwen.engine(prefix_tokens=2000)
    prompts = [qwen.prompt("Look at this image of mine: ", (60, 60, seed), "What is it?") for seed in (1, 2, 1)]
    for i, prompt in enumerate(prompts):
        completion = _add(engine, str(i), prompt)
        engine.run()
        assert completion.token_ids == qwen.expected(prompt)


def test_the_images_of_a_conversation_and_of_all_choices_are_encoded_once(qwen):
    engine, encoded = qwen.engine(prefix_tokens=2000), []
    _vision_tower(engine.features._model).register_forward_hook(lambda *_: encoded.append(True))
    images = ((60, 60, 1), (60, 60, 2))
    prompts = [qwen.prompt("Look: ", *images), qwen.prompt("Again: ", *images, "and what now?")]
    for i, prompt in enumerate(prompts):
        choices = [_add(engine, f"{i}-{choice}", prompt) for choice in range(3)]
        engine.run()
        assert [each.token_ids for each in choices] == [qwen.expected(prompt)] * 3
    assert len(encoded) == 1
    other = qwen.prompt("Look: ", images[0], (60, 60, 3))
    completion = _add(engine, "other", other)
    engine.run()
    assert completion.token_ids == qwen.expected(other)
    assert len(encoded) == 2


def test_the_oldest_images_are_dropped_when_memory_is_used_up(qwen):
    model = load_model(qwen.path, EngineConfig(dtype="float32"))
    prompts = [qwen.prompt((60, 60, seed)) for seed in (1, 2, 1)]
    encoder = VisionEncoder(model)
    cache = encoder._cache
    encoder.encode(prompts[0].token_ids, _tensors(prompts[0]))
    cache._cache._max_bytes = cache._cache.num_bytes
    encoded: list[bool] = []
    _vision_tower(model).register_forward_hook(lambda *_: encoded.append(True))
    for prompt in prompts[1:]:
        encoder.encode(prompt.token_ids, _tensors(prompt))
    assert len(encoded) == 2
    assert cache._cache.num_bytes == cache._cache._max_bytes


def test_tensors_that_do_not_fit_fail_only_their_request(qwen):
    engine = qwen.engine()
    good, other = qwen.prompt("Look: ", (60, 60, 1)), qwen.prompt((60, 60, 1), (60, 60, 2))
    cached = _add(engine, "good", good)
    engine.step()
    wrong = engine.add("wrong", other.token_ids, _inputs(good))
    nonsense = engine.add("nonsense", good.token_ids, PromptInputs(mm={"x": _floats(3)}))
    engine.run()
    assert (wrong.finish_reason, nonsense.finish_reason) == ("error", "error")
    assert "do not fit" in str(wrong.error)
    assert cached.token_ids == qwen.expected(good)
    engine.assert_nothing_leaked()


def test_a_request_can_be_aborted_before_its_images_are_encoded(qwen):
    engine = qwen.engine()
    _add(engine, "a", qwen.prompt((60, 60, 1)))
    assert (engine.stats.num_waiting, engine.core.has_work) == (1, True)
    engine.core.abort(["a"])
    assert (engine.stats.num_waiting, engine.core.has_work) == (0, False)


def test_half_precision_features_are_close_to_float32(vision):
    prompt, features = vision.prompt("Look: ", (60, 60, 1), "?"), []
    for dtype in ("float32", "bfloat16"):
        model = load_model(vision.path, EngineConfig(dtype=dtype))  # type: ignore[arg-type]
        features.append(VisionEncoder(model).encode(prompt.token_ids, _tensors(prompt)))
    exact, half = (f.embeds.float() for f in features)
    assert features[1].embeds.dtype == torch.bfloat16
    assert (half - exact).abs().max() < 0.1 * exact.abs().max()
    engine = SmallEngine(model, max_model_len=1024)
    completion = _add(engine, "a", prompt)
    engine.run()
    assert len(completion.token_ids) == _NUM_TOKENS


def test_a_language_model_with_further_arguments_is_rejected(qwen, monkeypatch):
    model = load_model(qwen.path, EngineConfig(dtype="float32"))
    encoder, prompt = VisionEncoder(model), qwen.prompt((60, 60, 1))
    run = encoder._run
    monkeypatch.setattr(encoder, "_run", lambda *args: run(*args) | {"deepstack_visual_embeds": torch.zeros(1)})
    with pytest.raises(PromptFeaturesError, match="deepstack_visual_embeds"):
        encoder.encode(prompt.token_ids, _tensors(prompt))


def test_a_text_model_rejects_images(llama):
    assert image_encoder(llama) is None
    engine = SmallEngine(llama)
    rejected = engine.add("a", [5, 6, 7], PromptInputs(mm={"pixel_values": _floats(3)}))
    engine.run()
    assert (rejected.finish_reason, rejected.error) == ("error", "this model takes no images")


def _floats(n: int) -> TensorData:
    return TensorData("float32", (n,), memoryview(bytearray(4 * n)))
