"""Values in JSON flags are rejected before vLLM starts, but only if pydantic rejects them."""

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from startup.vllm_words.json_shape import shape_of, shape_problem
from tests.startup.vllm.small_parser import SmallConfig
from tests.vllm_engine.test_vllm_facts import JSON_VALUES

_SHAPE = shape_of(SmallConfig)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"foo": 1}, "-cc has no field 'foo'"),
        ({"own": "x"}, "-cc has no field 'own'"),
        ({"passes": {"fus": 1}}, "-cc has no field 'passes.fus' (did you mean 'fuse'?)"),
        ({"made": {"fus": 1}}, "-cc has no field 'made.fus' (did you mean 'fuse'?)"),
        ({"named": "3"}, "-cc: named '3' is not one of NONE, FULL_GRAPH, auto"),
        ({"named": 3}, "-cc: named 3 is not one of NONE, FULL_GRAPH, auto"),
        ({"numbered": "full"}, "-cc: numbered 'full' is not one of 0, 2"),
        ({"attention": "flash"}, "-cc: attention 'flash' is not one of FLASH_ATTN, SDPA, auto"),
        ({"kernel": "deepgemm"}, "-cc: kernel 'deepgemm' is not one of auto, deep_gemm (did you mean 'deep_gemm'?)"),
        ({"mode": 4}, "-cc: mode must be 3 or less, got 4"),
        ({"names": ["a", 1]}, "-cc: names.1 1 is not a text"),
        ({"passes": {"sizes": [1, "x"]}}, "-cc: passes.sizes.1 'x' is not a whole number"),
        ({"passes": {"fuse": "maybe"}}, "-cc: passes.fuse 'maybe' is not true or false"),
        ({"passes": []}, "-cc: passes [] is not a JSON object"),
        ({"per_kind": {"a": "x"}}, "-cc: per_kind.a 'x' is not a number"),
        ({"max_num_seqs": None}, "-cc: max_num_seqs None is not a whole number"),
    ],
    ids=str,
)
def test_a_value_that_the_class_rejects(content, problem):
    assert (shape_problem(_SHAPE, content, "-cc") or "").startswith(problem)


def _accepted(content: object) -> bool:
    try:
        TypeAdapter(SmallConfig).validate_json(json.dumps(content))
    except (KeyError, ValidationError):
        return False
    return True


@pytest.mark.parametrize("name", _SHAPE.fields)
def test_no_value_that_the_class_accepts_is_rejected(name):
    texts = ("AUTO", "Full_Graph", "flash_attn", "DEEP-GEMM", "a.b.FlashAttention", "inductor", "a", *JSON_VALUES)
    nested = [{key: value} for key in ("fuse", "sizes", "a") for value in (*texts, [1, "auto"])]
    accepted = [value for value in (*texts, *nested) if _accepted({name: value})]
    assert [value for value in accepted if shape_problem(_SHAPE, {name: value}, "-cc")] == []
    assert accepted != []
