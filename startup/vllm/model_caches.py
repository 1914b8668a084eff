"""Fills vLLM's own caches of tokenizers and compiler keys once, for all forks of this process.

vLLM loads a model's tokenizer in the API server and in the engine, and again for its chat template. Each of
these results is in a cache of the process, whose keys contain the model's folder.
"""

import importlib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from server.machine.file_stamps import Stamps, read_stamps
from startup.vllm.tokenizer_pool import PreparedPool

logger = logging.getLogger(__name__)

_CACHES: Final = (
    ("vllm.tokenizers.registry", "cached_get_tokenizer"),
    ("vllm.tokenizers.registry", "cached_resolve_tokenizer_args"),
    ("vllm.transformers_utils.processor", "cached_get_processor"),
    ("vllm.renderers.hf", "_PROCESSOR_CHAT_TEMPLATES"),
)
"""Modules and their caches: functions of `functools`, and a dictionary."""

_COMPILER_KEYS: Final = (
    ("torch._inductor.codecache", "torch_key"),
    ("torch._inductor.codecache", "triton_key"),
    ("torch._inductor.cpu_vec_isa", "valid_vec_isa_list"),
)
"""Modules and their functions whose results torch keeps."""


class ModelCaches:
    """The cached results of some models, and the files that they were read from."""

    def __init__(self) -> None:
        self.models: list[Path] = []
        self._stamps: dict[Path, Stamps] = {}
        self._pools: list[PreparedPool] = []

    def fill(self, models: Sequence[Path]) -> None:
        """Loads the tokenizers of models in absolute folders; one that cannot be loaded is left out."""
        with _offline():
            for model in models:
                stamps = read_stamps(model)
                try:
                    tokenizer = _load_tokenizer(model)
                    if not any(model.glob("*processor_config.json")):  # a model with images copies otherwise
                        self._pools.append(PreparedPool(tokenizer))
                except Exception as err:  # noqa: BLE001 - a start reports faults of its model
                    logger.debug("the tokenizer of %s is not kept: %s", model, err)
                self.models.append(model)
                self._stamps[model] = stamps

    def drop_pools(self) -> None:
        """For a start whose renderer does not have the default number of copies, or changes its copy."""
        for pool in self._pools:
            pool.drop()

    def drop_changed(self) -> None:
        """Empties vLLM's caches if a file has changed."""
        if any(read_stamps(model) != stamps for model, stamps in self._stamps.items()):
            self._stamps.clear()
            for module, name in _CACHES:
                cache: Any = getattr(sys.modules.get(module), name, None)
                clear = getattr(cache, "cache_clear", None) or getattr(cache, "clear", None)
                if clear is not None:
                    clear()


def fill_compiler_keys() -> None:
    """Computes the hashes of the compiler's installed sources, and which vector instructions it can use."""
    for module, function in _COMPILER_KEYS:
        with suppress(Exception):  # another version of torch has other functions
            getattr(importlib.import_module(module), function)()


def _load_tokenizer(model: Path) -> Any:
    """With the arguments that vLLM derives from a command line without flags for the tokenizer."""
    registry = importlib.import_module("vllm.tokenizers.registry")
    config = SimpleNamespace(
        skip_tokenizer_init=False,
        hf_config=None,
        tokenizer=str(model),
        runner_type="generate",
        tokenizer_mode="auto",
        tokenizer_revision=None,
        trust_remote_code=False,
    )
    tokenizer = registry.cached_tokenizer_from_config(config)
    hf: Any = sys.modules.get("vllm.renderers.hf")
    if hf is not None:
        hf._try_get_processor_chat_template(tokenizer, revision=None, code_revision=None, trust_remote_code=False)
    return tokenizer


@contextmanager
def _offline() -> Iterator[None]:
    """Without requests to the hub."""
    constants: Any = sys.modules.get("huggingface_hub.constants")
    before = getattr(constants, "HF_HUB_OFFLINE", None)
    if constants is not None:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        if constants is not None:
            constants.HF_HUB_OFFLINE = before
