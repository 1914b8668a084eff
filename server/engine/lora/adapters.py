"""The adapters that requests may use. An unloaded adapter stays in memory until no request uses it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from server.engine.lora.adapter import AdapterError, read_adapter
from server.engine.lora.layers import AdaptedLayers
from server.terms.config import LoraConfig


@dataclass
class _Registered:
    name: str
    num_users: int = 0
    """The number of sequences that use the adapter and have not ended."""
    is_unloaded: bool = False
    """Whether the adapter accepts no further requests. It is freed once its last request has ended."""


class Adapters:
    """All loaded adapters. Used only on the engine's thread."""

    def __init__(self, model: PreTrainedModel, layers: AdaptedLayers, config: LoraConfig) -> None:
        self._model = model
        self._layers = layers
        self._config = config
        self._registered: dict[int, _Registered] = {}

    def add(self, adapter_id: int, name: str, folder: Path) -> None:
        """Reads and registers an adapter. An older one with the same name may exist, and is unloaded later.

        Raises:
            AdapterMissingError: there is no adapter in the folder.
            AdapterError: the adapter is broken, does not fit the model, or exceeds `--max-cpu-loras`.
        """
        self._check_room(name)
        try:
            updates = read_adapter(folder, self._model, self._config)
        except torch.OutOfMemoryError as err:
            raise AdapterError(f"the GPU has no room for the adapter in {folder}") from err
        self._layers.add(adapter_id, updates)
        self._registered[adapter_id] = _Registered(name)

    def accepts(self, adapter_id: int) -> bool:
        """Whether new requests may use the adapter."""
        return adapter_id in self._registered and not self._registered[adapter_id].is_unloaded

    def names_of(self, adapter_ids: Iterable[int]) -> tuple[str, ...]:
        return tuple(sorted(self._registered[adapter_id].name for adapter_id in adapter_ids))

    def acquire(self, adapter_id: int) -> None:
        """Keeps an adapter in memory until `release`. The id 0 stands for the model without an adapter."""
        if adapter_id:
            self._registered[adapter_id].num_users += 1

    def release(self, adapter_id: int) -> None:
        """Ends the use of an adapter by a sequence."""
        if adapter_id:
            self._registered[adapter_id].num_users -= 1
            self._free_if_unused(adapter_id)

    def unload(self, adapter_id: int) -> None:
        """Accepts no further requests for the adapter. Frees it once no sequence uses it."""
        if adapter_id in self._registered:
            self._registered[adapter_id].is_unloaded = True
            self._free_if_unused(adapter_id)

    def _check_room(self, name: str) -> None:
        others = {each.name for each in self._registered.values() if not each.is_unloaded} - {name}
        most = self._config.max_cpu_loras
        if most is not None and len(others) >= most:
            raise AdapterError(
                f"--max-cpu-loras {most} adapters are in memory. Only `--engine vllm` reads others again on demand"
            )

    def _free_if_unused(self, adapter_id: int) -> None:
        registered = self._registered[adapter_id]
        if registered.is_unloaded and not registered.num_users:
            del self._registered[adapter_id]
            self._layers.remove(adapter_id)
