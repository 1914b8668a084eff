"""Prompts of embeddings give the same output as their text, in any batch. Ids identify their rows."""

import copy
import re

import pytest
import torch
from transformers import PreTrainedModel

from base.errors import EngineStartError
from server.engine.build import build_core
from server.engine.phases import Phases
from server.engine.prompt_features import FeatureBuilder, check_takes_embeds, identify_rows
from server.terms.config import EngineConfig, ModelFiles
from server.terms.types import PromptInputs, TensorData
from tests.server.engine.small_engine import SmallEngine
from tests.server.engine.tiny_models import PACKED, SEQUENTIAL, build_model, greedy_outputs, random_prompts, save_model

pytestmark = pytest.mark.thorough

NUM_TOKENS = 12
FAMILIES = ("llama", "qwen2", "gemma", "gemma3_text", "gpt2", "opt", "granite", "mistral")


def as_inputs(rows: torch.Tensor) -> PromptInputs:
    """The rows in the form in which the renderer sends them."""
    data = memoryview(bytearray(rows.contiguous().view(torch.uint8).numpy().tobytes()))
    return PromptInputs(embeds=TensorData(str(rows.dtype).removeprefix("torch."), tuple(rows.shape), data))


@torch.inference_mode()
def embeds_of(model: PreTrainedModel, prompt: list[int]) -> PromptInputs:
    """The prompt's embeddings, which a client reads from the model."""
    return as_inputs(model.get_input_embeddings()(torch.tensor(prompt)))


def add(engine: SmallEngine, name: str, model: PreTrainedModel, prompt: list[int], **params):
    return engine.add(name, [0] * len(prompt), embeds_of(model, prompt), **({"max_tokens": NUM_TOKENS} | params))


@pytest.mark.parametrize("architecture", FAMILIES)
def test_embeddings_give_the_output_of_their_text_alone_and_in_a_batch(architecture):
    model = build_model(architecture, PACKED[architecture])
    prompts = random_prompts(7, 40, 1, 23)
    expected = greedy_outputs(model, prompts, NUM_TOKENS)
    assert max(len(set(output)) for output in expected) > 4, "a model that repeats itself proves nothing"
    plain = copy.deepcopy(model)
    engine = SmallEngine(model, prefix_tokens=200)
    for i, prompt in enumerate(prompts):
        alone = add(engine, f"alone-{i}", plain, prompt)
        engine.run()
        assert alone.token_ids == expected[i]
    mixed = [add(engine, f"embeds-{i}", plain, prompt) for i, prompt in enumerate(prompts)]
    texts = [engine.add(f"text-{i}", prompt, max_tokens=NUM_TOKENS) for i, prompt in enumerate(prompts)]
    engine.run()
    assert [c.token_ids for c in mixed] == [c.token_ids for c in texts] == expected
    engine.assert_nothing_leaked()


@pytest.mark.parametrize("architecture", SEQUENTIAL)
def test_the_sequential_runner_supports_embeddings(architecture):
    model = build_model(architecture, SEQUENTIAL[architecture])
    prompts = random_prompts(9, 24)
    expected = greedy_outputs(model, prompts, NUM_TOKENS)
    check_takes_embeds(model)
    engine = SmallEngine(copy.deepcopy(model), sequential=True)
    embeds = [add(engine, f"embeds-{i}", model, prompt) for i, prompt in enumerate(prompts)]
    text = engine.add("text", prompts[0], max_tokens=NUM_TOKENS)
    engine.run()
    assert [c.token_ids for c in embeds] == expected
    assert text.token_ids == expected[0]


@pytest.mark.parametrize(("sizes", "is_preempted"), [
    ({"max_num_batched_tokens": 16}, False), ({"kv_cache_tokens": 130, "prefix_tokens": 60}, True),
], ids=["in chunks", "preempted"])  # fmt: skip
def test_rows_are_computed_in_chunks_and_again_after_a_preemption(plain_llama, llama, sizes, is_preempted):
    prompts = random_prompts(61, 30, 30)
    expected = greedy_outputs(plain_llama, prompts, 12)
    engine = SmallEngine(llama, **sizes)
    completions = [add(engine, f"embeds-{i}", plain_llama, prompt) for i, prompt in enumerate(prompts)]
    engine.run()
    assert (engine.stats.num_preemptions > 0) is is_preempted
    assert [c.token_ids for c in completions] == expected
    engine.assert_nothing_leaked()


def test_placeholder_ids_match_nothing_in_the_prefix_cache(plain_llama, llama):
    """All placeholder ids are 0. A text of token 0 has the same ids."""
    one, other = random_prompts(40, 40)
    zeros = [0] * 40
    expected = greedy_outputs(plain_llama, [one, other, zeros], NUM_TOKENS)
    engine = SmallEngine(llama, prefix_tokens=500)
    text = engine.add("zeros", zeros, max_tokens=NUM_TOKENS)
    engine.run()
    running = [add(engine, f"embeds-{i}", plain_llama, prompt) for i, prompt in enumerate((one, other))]
    engine.step()
    later = [
        add(engine, "later-one", plain_llama, one),
        add(engine, "later-other", plain_llama, other),
        engine.add("later-zeros", zeros, max_tokens=NUM_TOKENS),
    ]
    engine.run()
    assert [text.token_ids, *(c.token_ids for c in running)] == [expected[2], *expected[:2]]
    assert [c.token_ids for c in later] == expected
    assert [c.num_cached_tokens for c in later] == [32, 32, 32], "each matches its own rows"


def test_prompts_with_equal_first_rows_share_them(plain_llama, llama):
    [one] = random_prompts(60)
    other = [*one[:45], *reversed(one[45:])]
    expected = greedy_outputs(plain_llama, [one, other], NUM_TOKENS)
    engine = SmallEngine(llama, prefix_tokens=500)
    first = add(engine, "one", plain_llama, one)
    engine.run()
    second = add(engine, "other", plain_llama, other)
    salted = add(engine, "salted", plain_llama, one, cache_salt="mine")
    engine.run()
    assert [c.token_ids for c in (first, second, salted)] == [*expected, expected[0]]
    assert [c.num_cached_tokens for c in (first, second, salted)] == [0, 32, 0]


def test_placeholder_ids_are_not_penalised(plain_llama, llama):
    """Token 0 is not in the prompt. A penalty that counts placeholders would ban token 0 here."""
    (prompt,) = random_prompts(20)
    engine = SmallEngine(llama)
    options = {"repetition_penalty": 1e6, "logit_bias": {0: 100.0}, "max_tokens": 1}
    embeds = add(engine, "embeds", plain_llama, prompt, **options)
    text = engine.add("text", [*prompt[:-1], 0], **options)
    engine.run()
    assert embeds.token_ids == [0]
    assert text.token_ids != [0]


@pytest.mark.parametrize(("rows", "params", "message"), [
    pytest.param(torch.zeros(3, 63), {}, r"\[3, 63\] instead of \[3, 64\]", id="width"),
    pytest.param(torch.zeros(2, 64), {}, r"\[2, 64\] instead of \[3, 64\]", id="length"),
    pytest.param(torch.zeros(3, 64), {"prompt_logprobs": 1}, "no tokens", id="prompt logprobs"),
])  # fmt: skip
def test_rows_of_the_wrong_shape_fail_only_their_request(llama, rows, params, message):
    engine = SmallEngine(llama)
    rejected = engine.add("bad", [0, 0, 0], as_inputs(rows), **params)
    text = engine.add("text", [5, 6, 7], max_tokens=2)
    engine.run()
    assert rejected.finish_reason == "error"
    assert rejected.error is not None
    assert re.search(message, rejected.error)
    assert text.finish_reason == "length"
    engine.assert_nothing_leaked()


def test_a_model_that_also_uses_token_ids_fails_the_start(plain_llama):
    class UsesTokenIds(type(plain_llama)):  # type: ignore[misc]
        def forward(self, input_ids=None, inputs_embeds=None, **kwargs):
            output = super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)
            if input_ids is not None:
                output.logits = output.logits + input_ids[..., None] * 100
            return output

    model = copy.deepcopy(plain_llama)
    model.__class__ = UsesTokenIds
    with pytest.raises(EngineStartError, match="UsesTokenIds .* without --enable-prompt-embeds"):
        check_takes_embeds(model)


def test_engine_info_has_the_row_width_with_enable_prompt_embeds(tmp_path):
    save_model(tmp_path, "opt", {**PACKED["opt"], "word_embed_proj_dim": 32})
    config = EngineConfig(enable_prompt_embeds=True, max_num_seqs=2)
    _, info = build_core(ModelFiles(tmp_path, tmp_path), config, Phases())
    assert info.embeds_width == 32
    _, info = build_core(ModelFiles(tmp_path, tmp_path), EngineConfig(max_num_seqs=2), Phases())
    assert info.embeds_width is None


KEY = b"k" * 16


@pytest.mark.parametrize(("width", "dtype"), [(8, torch.float32), (576, torch.bfloat16), (7, torch.bfloat16)])
def test_equal_rows_have_equal_ids_and_different_rows_do_not(width, dtype):
    rows = torch.randn(500, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    ids = identify_rows(rows, None, KEY)
    assert ids.shape == (500,)
    assert len(set(ids.tolist())) == 500
    assert (ids < 0).all(), "no token id is negative"
    assert (identify_rows(rows.flip(0).contiguous(), None, KEY)[::-1] == ids).all()


def test_a_single_bit_or_the_position_changes_the_id():
    rows = torch.zeros(64, 4)
    flat = rows.view(torch.int32)
    for i in range(32):
        flat[i, 1] = 1 << i if i < 31 else -(1 << 31)
        flat[32 + i, 3] = flat[i, 1]
    assert len(set(identify_rows(rows, None, KEY).tolist())) == 64
    same = torch.ones(3, 4)
    ids = identify_rows(same, torch.tensor([[0, 0, 1], [0, 0, 0], [0, 1, 0]]), KEY)
    assert len(set(ids.tolist())) == 3
    assert identify_rows(same[:1], torch.tensor([[0], [0], [0]]), KEY)[0] == ids[0]


def test_each_engine_has_its_own_random_key():
    first, second = (FeatureBuilder(torch.nn.Identity())._key for _ in range(2))  # type: ignore[arg-type]
    rows = torch.randn(5, 4)
    assert first and second
    assert (identify_rows(rows, None, first) != identify_rows(rows, None, second)).all()
