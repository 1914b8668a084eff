"""The adapters that requests may use: which are registered, in memory, and to be dropped."""

import logging
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from server.engine.lora.adapter import AdapterError, read_adapter
from server.engine.lora.layers import AdaptedLayers
from server.lora_config import LoraConfig

logger = logging.getLogger(__name__)


@dataclass
class _Registered:
    name: str
    folder: Path
    num_users: int = 0
    """Sequences that have not ended."""
    is_unloaded: bool = False
    """Takes no further requests; freed once the last one has ended."""


class Adapters:
    """Used on the engine's thread. Adapters beyond `--max-cpu-loras` are read again when they are needed."""

    def __init__(self, model: PreTrainedModel, layers: AdaptedLayers, config: LoraConfig) -> None:
        self._model = model
        self._layers = layers
        self._config = config
        self._registered: dict[int, _Registered] = {}
        self._loaded: OrderedDict[int, None] = OrderedDict()
        """The least recently used first."""

    @property
    def num_in_memory(self) -> int:
        return len(self._loaded)

    def add(self, adapter_id: int, name: str, folder: Path, in_use: Collection[int] = ()) -> None:
        """Reads and registers an adapter.

        Args:
            in_use: adapters of running sequences, which stay in memory.

        Raises:
            AdapterMissingError: there is no adapter in the folder.
            AdapterError: it is broken or does not fit the model.
        """
        self._load(adapter_id, folder, in_use)
        self._registered[adapter_id] = _Registered(name, folder)

    def accepts(self, adapter_id: int) -> bool:
        """Whether new requests may use the adapter."""
        return adapter_id in self._registered and not self._registered[adapter_id].is_unloaded

    def names_of(self, adapter_ids: Iterable[int]) -> tuple[str, ...]:
        """The adapters' names, sorted."""
        return tuple(sorted(self._registered[adapter_id].name for adapter_id in adapter_ids))

    def acquire(self, adapter_id: int) -> None:
        """Keeps an adapter for a sequence until `release`; 0 is the model without an adapter."""
        if adapter_id:
            self._registered[adapter_id].num_users += 1

    def release(self, adapter_id: int) -> None:
        """Ends the use of an adapter by a sequence."""
        if adapter_id:
            self._registered[adapter_id].num_users -= 1
            self._free_if_unused(adapter_id)

    def require(self, adapter_ids: Collection[int]) -> dict[int, str]:
        """Brings the adapters of a step into memory; returns an error for each that cannot be read again."""
        errors: dict[int, str] = {}
        for adapter_id in adapter_ids:
            if adapter_id in self._loaded:
                self._loaded.move_to_end(adapter_id)
                continue
            registered = self._registered[adapter_id]
            try:
                self._load(adapter_id, registered.folder, adapter_ids)
            except AdapterError as err:
                errors[adapter_id] = f"its LoRA adapter {registered.name} cannot be loaded again: {err}"
        return errors

    def unload(self, adapter_id: int) -> None:
        """Accepts no further requests for the adapter, and frees it once no sequence uses it."""
        if adapter_id in self._registered:
            self._registered[adapter_id].is_unloaded = True
            self._free_if_unused(adapter_id)

    def _free_if_unused(self, adapter_id: int) -> None:
        registered = self._registered[adapter_id]
        if registered.is_unloaded and not registered.num_users:
            del self._registered[adapter_id]
            self._free(adapter_id)

    def _load(self, adapter_id: int, folder: Path, in_use: Collection[int]) -> None:
        try:
            updates = read_adapter(folder, self._model, self._config)
        except torch.OutOfMemoryError as err:
            raise AdapterError(f"the GPU has no room for the adapter in {folder}") from err
        idle = [other for other in self._loaded if other not in in_use]
        num_excess = len(self._loaded) + 1 - self._config.num_in_memory
        for other in idle[: max(num_excess, 0)]:
            self._free(other)
        self._layers.add(adapter_id, updates)
        self._loaded[adapter_id] = None

    def _free(self, adapter_id: int) -> None:
        if adapter_id in self._loaded:
            del self._loaded[adapter_id]
            self._layers.remove(adapter_id)
