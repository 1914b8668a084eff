"""Vectors of a response as bytes of the requested type, against torch."""

import base64

import msgspec
import numpy as np
import pytest
import torch

from server.apis.pooling.embedding import EmbeddingRequest
from server.apis.pooling.request import EmbedDType, Endianness
from server.apis.pooling.vectors import to_bytes, to_json
from server.types import EngineOutput, TensorData

TYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def result(values: torch.Tensor) -> EngineOutput:
    return EngineOutput("a", data=TensorData("float32", tuple(values.shape), memoryview(values.numpy().tobytes())))


@pytest.fixture(scope="module")
def values() -> torch.Tensor:
    """Embeddings, and numbers between two of each small type, where rounding to even decides."""
    numbers = torch.randn(4096, generator=torch.Generator().manual_seed(0)) / 6
    ties = torch.tensor([1.0, 1.0625, 1.125, 1.1875, 1.00390625, 1.01171875, -1.0625, 0.0, 2**-9, 2**-10])
    return torch.cat([numbers, ties])


@pytest.mark.parametrize("dtype", TYPES)
def test_numbers_are_rounded_as_by_torch(values: torch.Tensor, dtype: EmbedDType) -> None:
    expected = values.to(TYPES[dtype]).view(torch.uint8).numpy().tobytes()
    assert to_bytes(result(values), dtype, "native") == expected


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("endianness", "order"), [("little", "<"), ("big", ">")])
def test_bytes_have_the_requested_order(
    values: torch.Tensor, dtype: EmbedDType, endianness: Endianness, order: str
) -> None:
    size = 4 if dtype == "float32" else 2
    native = np.frombuffer(to_bytes(result(values), dtype, "native"), f"=u{size}")
    assert to_bytes(result(values), dtype, endianness) == native.astype(f"{order}u{size}").tobytes()


def test_json_has_the_numbers_or_their_bytes_in_base64(values: torch.Tensor) -> None:
    rows = values[:6].reshape(2, 3)
    assert np.array(msgspec.json.decode(to_json(result(rows), EmbeddingRequest(input="a")))) == pytest.approx(
        rows.numpy()
    )
    encoded = to_json(result(rows), EmbeddingRequest(input="a", encoding_format="base64", embed_dtype="float16"))
    assert base64.b64decode(encoded) == rows.half().numpy().tobytes()
