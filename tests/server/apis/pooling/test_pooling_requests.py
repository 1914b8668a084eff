"""Pooling requests: the forms of `input`, the names of a score's two inputs, and vectors as JSON."""

import base64
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from server.apis.pooling.endpoints import EmbeddingRequest, to_json
from server.apis.pooling.scoring import RerankRequest, ScoreRequest
from server.terms.http_body.request_body import RequestDecoder
from server.terms.types import EngineOutput, TensorData


@pytest.mark.parametrize(
    ("given", "prompts"),
    [("a", ["a"]), ("", [""]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1, 2], [3]], [[1, 2], [3]])],
)
def test_texts_and_token_ids_may_be_single_or_in_lists(given, prompts):
    assert RequestDecoder(EmbeddingRequest).decode(msgspec.json.encode({"input": given})).prompts == prompts


@pytest.mark.parametrize(
    "pair", [("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")]
)
def test_the_two_inputs_have_four_pairs_of_names(pair):
    request = RequestDecoder(ScoreRequest).decode(msgspec.json.encode({pair[0]: "a", pair[1]: ["b", "c"]}))
    assert (request.first, request.second, request.names) == (["a"], ["b", "c"], pair)


def test_an_instruction_is_a_variable_of_the_template():
    def kwargs(**fields: Any) -> dict[str, Any]:
        body = msgspec.json.encode({"query": "a", "documents": ["b"]} | fields)
        return RequestDecoder(RerankRequest).decode(body).template_kwargs

    assert kwargs() == {}
    assert kwargs(instruction="i") == {"instruction": "i"}
    assert kwargs(instruction="i", chat_template_kwargs={"instruction": "j", "k": 1}) == {"instruction": "j", "k": 1}


def test_json_has_the_numbers_or_their_bytes_in_base64():
    rows = torch.randn(2, 3)
    data = TensorData("float32", (2, 3), memoryview(rows.numpy().tobytes()))
    result = EngineOutput("a", data=data)
    numbers = msgspec.json.decode(to_json(result, EmbeddingRequest(input="a")))
    assert np.array(numbers) == pytest.approx(rows.numpy())
    encoded = to_json(result, EmbeddingRequest(input="a", encoding_format="base64", embed_dtype="float32"))
    assert base64.b64decode(encoded) == rows.numpy().tobytes()
