"""Sleep: frees the model's weights, and reads them again on waking up."""

import gc
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from server.machine.heap import trim_heap


class ReleasableWeights:
    """The weights of the engine's model; used on the engine's thread.

    The model's objects stay, so that runner, encoders and adapters keep theirs. Buffers stay too, as in vLLM.
    """

    def __init__(self, model: PreTrainedModel, reload: Callable[[], PreTrainedModel]) -> None:
        """`reload` loads the model again as it was loaded at the start."""
        self._model = model
        self._reload = reload

    def release(self) -> None:
        """Frees all weights; until `restore`, the model must not compute."""
        for parameter in self._model.parameters():
            parameter.data = parameter.data.new_empty(0)
        _return_memory()

    def restore(self) -> None:
        """Reads the weights again.

        Raises:
            EngineStartError: the files are gone or changed; the model stays without weights.
        """
        loaded = dict(self._reload().named_parameters())
        for name, parameter in self._model.named_parameters():
            parameter.data = loaded[name].data


def _return_memory() -> None:
    """Gives freed memory back to the system, which allocators do not do by themselves."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim_heap()
