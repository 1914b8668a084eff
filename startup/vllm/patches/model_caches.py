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
from typing import Any

from server.machine.file_stamps import FolderStamps, read_folder
from startup.hooks.left_out import applies
from startup.hooks.of_libraries import COMPILER_KEYS, KEPT_COMPILER_KEYS
from startup.hooks.of_vllm import (
    CACHED_TOKENIZER,
    CHAT_TEMPLATE,
    CONFIG_OF_TOKENIZER,
    MODEL_CACHES,
    TOKENIZER_CACHES,
    TOKENIZER_POOL,
)
from startup.vllm.patches.tokenizer_pool import PreparedPool

logger = logging.getLogger(__name__)


class ModelCaches:
    """The cached results of some models, and the files that they were read from."""

    def __init__(self) -> None:
        self.models: list[Path] = []
        self._stamps: dict[Path, FolderStamps] = {}
        self._pools: list[PreparedPool] = []

    def fill(self, models: Sequence[Path]) -> None:
        """Loads the tokenizers of models in absolute folders; one that cannot be loaded is left out."""
        with _offline():
            for model in models if applies(MODEL_CACHES) else ():
                stamps = read_folder(model)
                try:
                    tokenizer = _load_tokenizer(model)
                    has_images = any(model.glob("*processor_config.json"))  # its renderer copies in another way
                    if applies(TOKENIZER_POOL) and not has_images:
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
        if any(read_folder(model) != stamps for model, stamps in self._stamps.items()):
            self._stamps.clear()
            for name in TOKENIZER_CACHES:
                cache: Any = getattr(sys.modules.get(name.module), name.path, None)
                clear = getattr(cache, "cache_clear", None) or getattr(cache, "clear", None)
                if clear is not None:
                    clear()


def fill_compiler_keys() -> None:
    """Computes the hashes of the compiler's installed sources, and which vector instructions it can use."""
    for key in COMPILER_KEYS if applies(KEPT_COMPILER_KEYS) else ():
        with suppress(Exception):  # an optimisation: Triton may not be installed
            key.get(importlib.import_module(key.module))()


def _load_tokenizer(model: Path) -> Any:
    """With the arguments that vLLM derives from a command line without flags for the tokenizer."""
    given = {
        "skip_tokenizer_init": False,
        "tokenizer": str(model),
        "model": str(model),
        "runner_type": "generate",
        "tokenizer_mode": "auto",
        "trust_remote_code": False,
    }
    config = SimpleNamespace(**{**dict.fromkeys(CONFIG_OF_TOKENIZER.attributes), **given})
    tokenizer = CACHED_TOKENIZER.get(importlib.import_module(CACHED_TOKENIZER.module))(config)
    renderer = sys.modules.get(CHAT_TEMPLATE.module)
    if renderer is not None:
        CHAT_TEMPLATE.get(renderer)(tokenizer, revision=None, code_revision=None, trust_remote_code=False)
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
