"""The adapters that requests may use: which are registered, in memory, and to be dropped."""

import logging
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from server.engine.lora.adapter import read_adapter
from server.engine.lora.adapter_config import AdapterError
from server.engine.lora.layers import AdaptedLayers
from server.lora_config import LoraConfig

logger = logging.getLogger(__name__)


@dataclass
class _Registered:
    name: str
    folder: Path
    is_unloaded: bool = False
    """Takes no further requests; dropped once the last one has ended."""


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

    def name_of(self, adapter_id: int) -> str:
        """The adapter's name."""
        return self._registered[adapter_id].name

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
        """Accepts no further requests for the adapter; `drop_unloaded` frees it."""
        if adapter_id in self._registered:
            self._registered[adapter_id].is_unloaded = True

    @property
    def has_unloaded(self) -> bool:
        """Whether `drop_unloaded` has something to do."""
        return any(registered.is_unloaded for registered in self._registered.values())

    def drop_unloaded(self, in_use: Collection[int]) -> None:
        """Frees unloaded adapters that no sequence uses."""
        for adapter_id, registered in list(self._registered.items()):
            if registered.is_unloaded and adapter_id not in in_use:
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
