"""Embeddings of long prompts: cuts them into parts that fit the model, and averages the parts' vectors."""

from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from server.apis.pooling.context import PooledPrompt
from server.apis.pooling.vectors import values_of
from server.types import EngineOutput, TensorData

_NORM_TOLERANCE = 1e-2
"""bfloat16 rounds the length of a normalized embedding by less."""


def split_prompt(prompt: PooledPrompt, most_tokens: int) -> list[PooledPrompt]:
    """The prompt's tokens in parts of at most so many."""
    starts = range(0, len(prompt.token_ids), most_tokens)
    return [PooledPrompt(prompt.token_ids[start : start + most_tokens]) for start in starts]


def join_parts(outputs: Sequence[EngineOutput], parts: Sequence[PooledPrompt]) -> EngineOutput:
    """The average of the parts' embeddings by their number of tokens; normalized if all parts are."""
    if len(outputs) == 1:
        return outputs[0]
    vectors = np.stack([values_of(output) for output in outputs])
    average = np.average(vectors, axis=0, weights=[len(part.token_ids) for part in parts])
    if np.allclose(np.linalg.norm(vectors, axis=1), 1, rtol=_NORM_TOLERANCE):
        average /= max(float(np.linalg.norm(average)), 1e-12)
    data = np.ascontiguousarray(average, np.float32)
    return replace(outputs[0], data=TensorData("float32", data.shape, memoryview(data.tobytes())))
