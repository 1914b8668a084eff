"""Vectors of a response as JSON."""

import base64

import msgspec
import numpy as np
import pytest
import torch

from server.apis.pooling.endpoints import EmbeddingRequest, to_json
from server.types import EngineOutput, TensorData


def test_json_has_the_numbers_or_their_bytes_in_base64():
    rows = torch.randn(2, 3)
    data = TensorData("float32", (2, 3), memoryview(rows.numpy().tobytes()))
    result = EngineOutput("a", data=data)
    numbers = msgspec.json.decode(to_json(result, EmbeddingRequest(input="a")))
    assert np.array(numbers) == pytest.approx(rows.numpy())
    encoded = to_json(result, EmbeddingRequest(input="a", encoding_format="base64", embed_dtype="float32"))
    assert base64.b64decode(encoded) == rows.numpy().tobytes()
