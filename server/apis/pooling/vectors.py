"""Encodes vectors for a response. Takes time in proportion to their length; runs in the renderer pool."""

import base64
import math
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from server.apis.pooling.request import VectorFields
from server.types import EngineOutput, TensorData


def values_of(output: EngineOutput) -> npt.NDArray[np.float32]:
    """A result of the engine as an array."""
    data = tensor_of(output)
    return np.frombuffer(data.data, np.float32).reshape(data.shape)


def tensor_of(output: EngineOutput) -> TensorData:
    """The tensor of a result, which must have one."""
    assert output.data is not None, "the engine sent no numbers"
    return output.data


def to_json(output: EngineOutput, request: VectorFields) -> Any:
    """A list of numbers, or base64; encoded row by row, so that the event loop can run in between."""
    if request.encoding_format == "base64":
        return base64.b64encode(tensor_of(output).data).decode()
    values = values_of(output)
    if values.ndim == 1:
        return msgspec.Raw(msgspec.json.encode(values.tolist()))
    return msgspec.Raw(b"[" + b",".join(msgspec.json.encode(row.tolist()) for row in values) + b"]")


def cosine(first: EngineOutput, second: EngineOutput) -> float:
    """The cosine similarity of two embeddings."""
    one, other = values_of(first), values_of(second)
    lengths = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / max(lengths, 1e-8)


def max_similarity(query: EngineOutput, document: EngineOutput) -> float:
    """The sum over the query's tokens of the highest similarity with a token of the document."""
    return float((values_of(query) @ values_of(document).T).max(axis=-1).sum())
