"""Batched pooling gives the results of plain transformers for each prompt alone."""

from typing import Any

import pytest
import torch

from base.errors import EngineStartError
from server.engine.pooling.heads import PoolingSequence, choose_batch
from server.terms.config import PoolerConfig
from server.terms.types import PoolingParams
from tests.server.engine.pooling.tiny_poolers import (
    DECODERS,
    ENCODERS,
    MAX_LEN,
    PROMPTS,
    VOCABULARY,
    SmallPooling,
    assert_close,
    edit_config,
    hidden_states,
    logits,
    save_pooler,
    save_sentence_files,
    unit,
)

pytestmark = pytest.mark.thorough


def _pooler(kind: Any) -> dict[str, Any]:
    return {"pooler": PoolerConfig(pooling_type=kind, use_activation=False)}


def _softmax(rows: torch.Tensor) -> torch.Tensor:
    return rows.detach().softmax(-1)


LABELS = {"num_labels": 3}
CASES = {
    # kind, head, options of the model, of the engine and of the request, and what transformers computes
    **{f"{kind} embeds": (kind, "embed", {}, {}, {}, lambda m, p: unit(hidden_states(m, p)[0])) for kind in ENCODERS},
    **{f"{kind} embeds": (kind, "embed", {}, {}, {}, lambda m, p: unit(hidden_states(m, p)[-1])) for kind in DECODERS},
    "a language model embeds": (
        *("llama", "generate", {}, {"runner": "pooling"}, {}),
        lambda m, p: unit(hidden_states(m.model, p)[-1]),
    ),
    "the operator's CLS": (*("bert", "embed", {}, _pooler("CLS"), {}), lambda m, p: hidden_states(m, p)[0]),
    "the operator's MEAN": (*("bert", "embed", {}, _pooler("MEAN"), {}), lambda m, p: hidden_states(m, p).mean(0)),
    "the operator's LAST": (*("bert", "embed", {}, _pooler("LAST"), {}), lambda m, p: hidden_states(m, p)[-1]),
    **{
        f"{kind} classifies": (kind, "classify", LABELS, {}, {}, lambda m, p: _softmax(logits(m, p)))
        for kind in ("bert", "roberta", "distilbert", "modernbert")
    },
    "one label": ("roberta", "classify", {"num_labels": 1}, {}, {}, lambda m, p: logits(m, p).sigmoid()),
    "without activation": ("bert", "classify", LABELS, {}, {"use_activation": False}, logits),
    "tokens are classified": ("bert", "token_classify", LABELS, {}, {}, lambda m, p: _softmax(logits(m, p))),
    "tokens are embedded": ("bert", "embed", {}, {}, {"task": "token_embed"}, lambda m, p: unit(hidden_states(m, p))),
    "the operator's task": (
        *("bert", "embed", {}, {"pooler": PoolerConfig(task="token_embed")}, {}),
        lambda m, p: unit(hidden_states(m, p)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_batch_gives_the_results_of_transformers_for_each_prompt_alone(tmp_path, name):
    kind, head, options, of_engine, of_request, expected = CASES[name]
    model = save_pooler(tmp_path, kind, head, **options)
    engine = SmallPooling(tmp_path, **of_engine)
    assert_close(engine.run(PROMPTS, **of_request), [expected(model, prompt) for prompt in PROMPTS])
    assert len(engine.batches) == 1
    assert engine.info.pooling.num_labels == options.get("num_labels", 0)


def test_bfloat16_is_pooled_in_float32(tmp_path):
    model = save_pooler(tmp_path, "bert")
    engine = SmallPooling(tmp_path, dtype="bfloat16", pooler=PoolerConfig(pooling_type="MEAN"))
    for result, prompt in zip(engine.run(PROMPTS), PROMPTS, strict=True):
        assert result.norm() == pytest.approx(1.0, abs=1e-5)
        assert result @ unit(hidden_states(model, prompt).mean(0)) > 0.99


def test_packed_weights_do_not_change_results(tmp_path):
    save_pooler(tmp_path, "bert")
    engine = SmallPooling(tmp_path, dtype="bfloat16")
    before = engine.run(PROMPTS)
    for _ in engine.core.prepare():
        pass
    assert all(torch.equal(one, other) for one, other in zip(before, engine.run(PROMPTS), strict=True))


@pytest.mark.parametrize("normalizes", [True, False])
def test_sentence_transformers_files_set_pooling_and_length(tmp_path, normalizes):
    model = save_pooler(tmp_path, "bert")
    save_sentence_files(tmp_path, mode="mean", normalizes=normalizes)
    engine = SmallPooling(tmp_path)
    means = [hidden_states(model, prompt).mean(0) for prompt in PROMPTS]
    assert_close(engine.run(PROMPTS), [unit(mean) for mean in means] if normalizes else means)
    assert engine.info.max_model_len == 32


def test_a_dense_layer_runs_between_pooling_and_normalizing(tmp_path):
    from safetensors.torch import load_file

    model = save_pooler(tmp_path, "bert")
    save_sentence_files(tmp_path, dense=True)
    layer = load_file(tmp_path / "2_Dense" / "model.safetensors")
    engine = SmallPooling(tmp_path)
    expected = [
        unit(torch.tanh(layer["linear.weight"] @ hidden_states(model, p).mean(0) + layer["linear.bias"]))
        for p in PROMPTS
    ]
    assert_close(engine.run(PROMPTS), expected)
    assert engine.info.pooling.embedding_size == 8


def test_an_unknown_pooling_mode_or_a_missing_module_fails_the_start(tmp_path):
    save_pooler(tmp_path, "bert")
    save_sentence_files(tmp_path, mode="max")
    with pytest.raises(EngineStartError, match=r"pools by max.*--pooler-config"):
        SmallPooling(tmp_path)
    SmallPooling(tmp_path, pooler=PoolerConfig(pooling_type="MEAN"))
    (tmp_path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(EngineStartError, match="copy the folder's files"):
        SmallPooling(tmp_path)


def test_dimensions_are_cut_before_normalizing(tmp_path):
    model = save_pooler(tmp_path, "bert")
    edit_config(tmp_path, matryoshka_dimensions=[8, 16])
    engine = SmallPooling(tmp_path)
    assert engine.info.pooling.is_matryoshka
    assert engine.info.pooling.matryoshka_dimensions == (8, 16)
    assert_close(engine.run(PROMPTS, dimensions=8), [unit(hidden_states(model, p)[0][:8]) for p in PROMPTS])


@pytest.mark.parametrize(
    ("settings", "activate"),
    [
        ({"problem_type": "regression"}, lambda row: row),
        ({"problem_type": "multi_label_classification"}, torch.sigmoid),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, lambda row: row),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}, torch.tanh),
    ],
    ids=["regression", "multi_label", "identity", "tanh"],
)
def test_config_json_sets_the_activation(tmp_path, settings, activate):  # type: ignore[no-untyped-def,type-arg]
    model = save_pooler(tmp_path, "bert", "classify", num_labels=3)
    edit_config(tmp_path, **settings)
    assert_close(SmallPooling(tmp_path).run(PROMPTS), [activate(logits(model, prompt)) for prompt in PROMPTS])


def test_a_decoder_classifies_its_last_token_even_if_it_is_the_padding_token(tmp_path):
    model = save_pooler(tmp_path, "llama", "classify", num_labels=3)
    prompts = [[5, 6, 7, 0], [5, 6], [5, 0, 0]]
    expected = [(model.score(hidden_states(model.model, prompt)[-1])).detach().softmax(-1) for prompt in prompts]
    assert_close(SmallPooling(tmp_path).run(prompts), expected)


def test_a_language_model_classifies_by_two_words(tmp_path):
    model = save_pooler(tmp_path, "qwen3", "generate")
    edit_config(tmp_path, classifier_from_token=["no", "yes"], is_original_qwen3_reranker=True)
    engine = SmallPooling(tmp_path, runner="pooling", convert="classify")
    no, yes = VOCABULARY.index("no"), VOCABULARY.index("yes")
    expected = [logits(model, prompt)[-1][[no, yes]].softmax(-1)[1:] for prompt in PROMPTS]
    assert_close(engine.run(PROMPTS), expected)
    assert engine.info.pooling.num_labels == 1
    assert not engine.info.pooling.uses_sep_token


def test_prompts_that_do_not_fit_are_rejected_at_once(tmp_path):
    save_pooler(tmp_path, "bert")
    engine = SmallPooling(tmp_path)
    assert engine.info.max_model_len == MAX_LEN
    rejected = engine.outputs([[5] * (MAX_LEN + 1), [], [10_000]], None)
    assert [output.finish_reason for output in rejected] == ["error"] * 3
    assert engine.run([[5] * MAX_LEN])[0].shape == (32,)
    (unsupported,) = engine.outputs([[5]], None, task="classify")
    assert unsupported.error == "this model does not support the task classify"
    assert SmallPooling(tmp_path, max_model_len=16).info.max_model_len == 16


def test_positions_that_begin_after_the_padding_token_shorten_the_longest_prompt(tmp_path):
    save_pooler(tmp_path, "roberta", max_position_embeddings=20)
    assert SmallPooling(tmp_path).info.max_model_len == 19


def test_aborted_prompts_are_not_computed(tmp_path):
    save_pooler(tmp_path, "bert")
    core = SmallPooling(tmp_path).core
    for index in range(3):
        core.pool(str(index), PROMPTS[index], None, PoolingParams(task="embed"))
    assert core.stats.num_running == 3
    core.abort(["0", "2", "unknown"])
    assert [output.request_id for output in core.step()] == ["1"]
    assert not core.has_work
    assert core.stats.num_iteration_tokens == len(PROMPTS[1])


@pytest.mark.parametrize(
    ("head", "config", "options", "message"),
    [
        ("classify", {"sbert_ce_default_activation_function": "os.system"}, {}, r"os\.system"),
        ("classify", {}, {"pooler": PoolerConfig(pooling_type="MEAN")}, "pooling_type"),
        ("embed", {}, {"pooler": PoolerConfig(task="classify")}, "classify does not fit the model"),
        ("embed", {}, {"convert": "classify"}, r"lack .* of the model's tensors: classifier"),
        ("embed", {}, {"max_model_len": 65}, "own limit of 64"),
    ],
    ids=["an activation outside of torch", "a classifier pools by itself", "an unsupported task", "no head", "length"],
)
def test_a_setting_that_does_not_fit_the_model_fails_the_start(tmp_path, head, config, options, message):
    save_pooler(tmp_path, "bert", head)
    edit_config(tmp_path, **config)
    with pytest.raises(EngineStartError, match=message):
        SmallPooling(tmp_path, **options)


@pytest.mark.parametrize(
    ("lengths", "limits", "chosen"),
    [
        ([5], (8, 100), [5]),
        ([5, 50, 6, 4], (8, 20), [4, 5, 6]),
        ([50, 5, 6, 49], (8, 100), [49, 50]),
        ([200, 5], (8, 100), [200]),
        ([5, 5, 5, 5], (2, 100), [5, 5]),
        ([10, 11, 9, 100], (8, 33), [9, 10, 11]),
        ([10, 1, 1, 1, 40], (8, 50), [1, 1, 1, 10]),
    ],
)
def test_a_batch_contains_the_oldest_prompt_and_those_of_similar_length(lengths, limits, chosen):
    waiting = [PoolingSequence(str(i), [1] * n, PoolingParams(task="embed")) for i, n in enumerate(lengths)]
    batch = choose_batch(waiting, *limits)
    assert [sequence.num_tokens for sequence in batch] == chosen
    assert waiting[0] in batch
