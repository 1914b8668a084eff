"""Schemas allow exactly the values that they describe, as with vLLM's backend.

A line of schemas.jsonl has a schema with texts that it accepts and rejects. `vllm` says what the backend of
vLLM reads differently.
"""

import json
from pathlib import Path

import pytest

from server.terms.types import GuidedDecoding
from tests.conversations.conversation import read_lines
from tests.server.engine.sampling.grammar_texts import accepted_texts, assert_vllm_accepts
from tests.support.peer_vllm import needs_vllm

LINES = [line for _, line in read_lines(Path(__file__).with_name("schemas.jsonl"))]


@pytest.mark.parametrize("line", [pytest.param(line, id=line["why"]) for line in LINES])
def test_schema_allows_what_it_lists(line):
    guided = GuidedDecoding("json_schema", json.dumps(line["schema"]))
    assert accepted_texts(guided, line["accepts"] + line["rejects"]) == line["accepts"]


@pytest.mark.slow
@needs_vllm
def test_vllms_schemas_accept_the_same_texts(tmp_path):
    cases = [
        ("json", json.dumps(line["schema"]), line["accepts"], line["rejects"]) for line in LINES if "vllm" not in line
    ]
    assert_vllm_accepts(cases, tmp_path)
