"""Encodes vectors for a response. Takes time in proportion to their length; runs in the renderer pool."""

import base64
import json
import math
from typing import Any, Final, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from server.apis.pooling.base import PoolingServeContext
from server.apis.pooling.request import EmbedDType, Endianness, VectorFields
from server.http_body.response_parts import BinaryResponse
from server.renderers.embeds.stored_tensor import to_bfloat16
from server.types import EngineOutput, TensorData

V = TypeVar("V", bound=VectorFields)

_BYTE_ORDERS = {"native": "=", "little": "<", "big": ">"}


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
        return base64.b64encode(to_bytes(output, request.embed_dtype, request.endianness)).decode()
    values = values_of(output)
    if values.ndim == 1:
        return msgspec.Raw(msgspec.json.encode(values.tolist()))
    return msgspec.Raw(b"[" + b",".join(msgspec.json.encode(row.tolist()) for row in values) + b"]")


def to_bytes(output: EngineOutput, dtype: EmbedDType, endianness: Endianness) -> bytes:
    """The numbers as contiguous bytes."""
    values, order = values_of(output), _BYTE_ORDERS[endianness]
    if dtype == "float16":
        return values.astype(f"{order}f2").tobytes()
    if dtype == "bfloat16":
        return to_bfloat16(values).astype(f"{order}u2").tobytes()
    if dtype in ("fp8_e4m3", "fp8_e5m2"):
        return to_fp8(values, dtype).tobytes()
    return values.astype(f"{order}f4").tobytes()


def binary_response(ctx: PoolingServeContext[V]) -> BinaryResponse | None:
    """All vectors in one body; a header has the position of each, except with `bytes_only`.

    None if the request asks for JSON.
    """
    request, outputs = ctx.request, ctx.outputs
    if request.encoding_format not in ("bytes", "bytes_only"):
        return None
    parts = [to_bytes(output, request.embed_dtype, request.endianness) for output in outputs]
    if request.encoding_format == "bytes_only":
        return BinaryResponse(b"".join(parts))
    ends = np.cumsum([len(part) for part in parts]).tolist()
    items = [
        {
            "index": index,
            "embed_dtype": request.embed_dtype,
            "endianness": request.endianness,
            "start": end - len(part),
            "end": end,
            "shape": tensor_of(output).shape,
        }
        for index, (part, end, output) in enumerate(zip(parts, ends, outputs, strict=True))
    ]
    usage = {"prompt_tokens": ctx.usage.prompt_tokens, "total_tokens": ctx.usage.total_tokens}
    head = {"id": ctx.request_id, "created": ctx.created, "model": ctx.model_name, "usage": usage}
    metadata = json.dumps({**head, "data": items})
    return BinaryResponse(b"".join(parts), ((b"metadata", metadata.encode("ascii")),))


def cosine(first: EngineOutput, second: EngineOutput) -> float:
    """The cosine similarity of two embeddings."""
    one, other = values_of(first), values_of(second)
    lengths = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / max(lengths, 1e-8)


def max_similarity(query: EngineOutput, document: EngineOutput) -> float:
    """The sum over the query's tokens of the highest similarity with a token of the document."""
    return float((values_of(query) @ values_of(document).T).max(axis=-1).sum())


def to_fp8(values: npt.NDArray[np.float32], kind: Literal["fp8_e4m3", "fp8_e5m2"]) -> npt.NDArray[np.uint8]:
    """One byte per number: the code of the nearest number that the format has, as by torch.

    Numbers that are too large become the largest one in e4m3, and infinity in e5m2.
    """
    numbers = _FP8_NUMBERS[kind]
    sizes = np.abs(values).astype(np.float64)
    below = np.maximum(np.searchsorted(numbers, sizes, side="right") - 1, 0)
    above = np.minimum(below + 1, len(numbers) - 1)
    distance_below, distance_above = sizes - numbers[below], numbers[above] - sizes
    is_odd = below % 2 == 1
    rounds_up = (distance_above < distance_below) | ((distance_above == distance_below) & is_odd)
    codes = np.where(rounds_up, above, below)
    codes = np.where(np.isnan(sizes), _NAN, codes)
    signed: npt.NDArray[np.uint8] = (codes | (np.signbit(values).astype(np.int64) << 7)).astype(np.uint8)
    return signed


def _numbers(num_exponent_bits: int, num_mantissa_bits: int, num_codes: int) -> npt.NDArray[np.float64]:
    """The values of the codes from 0 on, by an exponent with the usual bias and a mantissa."""
    codes = np.arange(num_codes)
    exponents, mantissas = codes >> num_mantissa_bits, codes & ((1 << num_mantissa_bits) - 1)
    bias = (1 << (num_exponent_bits - 1)) - 1
    fractions = mantissas / (1 << num_mantissa_bits)
    is_normal = exponents > 0
    numbers: npt.NDArray[np.float64] = (is_normal + fractions) * 2.0 ** (np.maximum(exponents, 1) - bias)
    return numbers


_NAN: Final = 0x7F
_FP8_NUMBERS: Final = {"fp8_e4m3": _numbers(4, 3, 0x7F), "fp8_e5m2": _numbers(5, 2, 0x7D)}
"""The numbers of the codes up to the largest, in ascending order."""
