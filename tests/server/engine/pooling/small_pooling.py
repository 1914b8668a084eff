"""A pooling core for a tiny model, and reference results of plain transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from server.engine.phases import Phases
from server.engine.pooling.core import build_pooling_core
from server.terms.config import EngineConfig, ModelFiles
from server.terms.types import EngineOutput, PoolingParams
from server.text.model_files import read_model_kind

PROMPTS = [[2, 5, 6, 7, 8, 9, 10, 3], [2, 5, 3], [2, 11, 12, 13, 14, 3], [2, *range(5, 30), 3], [2, 5, 6, 7, 3]]


class SmallPooling:
    """Runs the steps of a pooling core, which is built as in the engine process."""

    def __init__(self, folder: Path, **config: Any) -> None:
        files, engine = ModelFiles(folder, folder), EngineConfig(**config)
        self.core, self.info = build_pooling_core(read_model_kind(folder, engine), files, engine, Phases())
        self.batches: list[list[str]] = []
        """The request ids of each step."""

    def run(self, prompts: list[list[int]], types: list[list[int]] | None = None, **params: Any) -> list[torch.Tensor]:
        """The results in the order of the prompts. Without `task`, the model's default task is used."""
        outputs = self.outputs(prompts, types, **params)
        assert all(output.error is None for output in outputs), [output.error for output in outputs]
        return [tensor(output) for output in outputs]

    def outputs(self, prompts: list[list[int]], types: list[list[int]] | None, **params: Any) -> list[EngineOutput]:
        assert self.info.pooling is not None
        wanted = PoolingParams(**({"task": self.info.pooling.task} | params))
        found: dict[str, EngineOutput] = {}
        for index, prompt in enumerate(prompts):
            rejection = self.core.pool(str(index), prompt, types[index] if types else None, wanted)
            if rejection is not None:
                found[rejection.request_id] = rejection
        while self.core.has_work:
            outputs = self.core.step()
            self.batches.append([output.request_id for output in outputs])
            found |= {output.request_id: output for output in outputs}
        return [found[str(index)] for index in range(len(prompts))]


def tensor(output: EngineOutput) -> torch.Tensor:
    assert output.data is not None
    return torch.from_numpy(np.frombuffer(output.data.data, np.float32).reshape(output.data.shape).copy())


def hidden_states(model: PreTrainedModel, prompt: list[int]) -> torch.Tensor:
    """The hidden states of one prompt alone, without padding."""
    return _run_alone(model, prompt, None).last_hidden_state[0]  # type: ignore[no-any-return]


def logits(model: PreTrainedModel, prompt: list[int], types: list[int] | None = None) -> torch.Tensor:
    """The logits of one prompt alone, without padding."""
    return _run_alone(model, prompt, types).logits[0]  # type: ignore[no-any-return]


def _run_alone(model: PreTrainedModel, prompt: list[int], types: list[int] | None) -> Any:
    inputs = {"input_ids": torch.tensor([prompt])} | ({"token_type_ids": torch.tensor([types])} if types else {})
    with torch.no_grad():
        return model(**inputs)


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return normalize(vectors, dim=-1)


def assert_close(results: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference, atol=2e-5, rtol=1e-4)
