"""Fills vLLM's own caches of tokenizers and compiler keys once, for all forks of this process.

vLLM loads a model's tokenizer in the API server and in the engine, and again for its chat template. Each of
these results is in a cache of the process, whose keys contain the model's folder.
"""

import copy
import importlib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from server.machine.file_stamps import FolderStamps, read_folder
from startup.hooks.hook import Hook, Name, Reads, Text
from startup.vllm.patches.tokenizers import CHAT_TEMPLATE

_CACHED_TOKENIZER: Final = Name("vllm.tokenizers.registry", "cached_tokenizer_from_config", ("model_config",))
_TOKENIZER_CACHES: Final = (
    Name("vllm.tokenizers.registry", "cached_get_tokenizer"),
    Name("vllm.tokenizers.registry", "cached_resolve_tokenizer_args"),
    Name("vllm.transformers_utils.processor", "cached_get_processor"),
    Name("vllm.renderers.hf", "_PROCESSOR_CHAT_TEMPLATES"),
)
"""Functions of `functools`, and a dictionary."""
_CONFIG_OF_TOKENIZER: Final = Reads(
    _CACHED_TOKENIZER,
    "model_config",
    (
        "skip_tokenizer_init", "hf_config", "tokenizer", "model", "runner_type", "tokenizer_mode", "tokenizer_revision",
        "code_revision", "trust_remote_code",
    ),
)  # fmt: skip
MODEL_CACHES: Final = Hook(
    "kept tokenizers",
    does="loads a model's tokenizer and template once in a standby, into vLLM's own caches",
    without="a warm start loads the tokenizer again",
    needs=(_CACHED_TOKENIZER, _CONFIG_OF_TOKENIZER, CHAT_TEMPLATE, *_TOKENIZER_CACHES),
)

_MAKE_POOL: Final = Name("vllm.tokenizers.hf", "maybe_make_thread_pool", ("tokenizer", "copies"))
_RENDERER: Final = "vllm.renderers.hf"
TOKENIZER_POOL: Final = Hook(
    "prepared tokenizer pools",
    does="copies a tokenizer in a standby, where vLLM's renderer would copy it",
    without="a warm start copies the tokenizer twice",
    needs=(
        _MAKE_POOL,
        Text((_RENDERER,), r"tokenizer = copy\.copy\(tokenizer\)", "copy.copy(tokenizer)"),
        Text((_RENDERER,), r"make_thread_pool\([^)]*renderer_num_workers \+ 1", "a pool of renderer_num_workers + 1"),
    ),
)

_COMPILER_KEYS: Final = (
    Name("torch._inductor.codecache", "torch_key", ()),
    Name("torch._inductor.codecache", "triton_key", ()),
    Name("torch._inductor.cpu_vec_isa", "valid_vec_isa_list", ()),
)
KEPT_COMPILER_KEYS: Final = Hook(
    "kept keys of compile caches",
    does="hashes the compiler's sources once in a standby",
    without="a warm start that compiles hashes them again",
    needs=_COMPILER_KEYS,
)

_NUM_COPIES: Final = 2
"""vLLM's default: one per renderer thread and one more."""
_COPY: Final = "__copy__"

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
            for model in models if MODEL_CACHES.applies else ():
                stamps = read_folder(model)
                try:
                    tokenizer = _load_tokenizer(model)
                    has_images = any(model.glob("*processor_config.json"))  # its renderer copies in another way
                    if TOKENIZER_POOL.applies and not has_images:
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
            for name in _TOKENIZER_CACHES:
                cache: Any = getattr(sys.modules.get(name.module), name.path, None)
                clear = getattr(cache, "cache_clear", None) or getattr(cache, "clear", None)
                if clear is not None:
                    clear()


def fill_compiler_keys() -> None:
    """Computes the hashes of the compiler's installed sources, and which vector instructions it can use."""
    for key in _COMPILER_KEYS if KEPT_COMPILER_KEYS.applies else ():
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
    config = SimpleNamespace(**{**dict.fromkeys(_CONFIG_OF_TOKENIZER.attributes), **given})
    tokenizer = _CACHED_TOKENIZER.get(importlib.import_module(_CACHED_TOKENIZER.module))(config)
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


class PreparedPool:
    """The prepared copies of one tokenizer: making them takes half of the API server's time in a warm start.

    vLLM's renderer copies its cached tokenizer and makes a pool of two more copies. Here vLLM's own function
    makes the pool in advance; the renderer's copy, and no other, is the prepared one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._class = type(tokenizer)
        make_pool = _MAKE_POOL.get(sys.modules[_MAKE_POOL.module])
        pooled = make_pool(copy.copy(tokenizer), _NUM_COPIES)
        if self._class.__module__ == _MAKE_POOL.module and not hasattr(self._class, _COPY):
            setattr(self._class, _COPY, self._copier(tokenizer, pooled))

    def drop(self) -> None:
        """From now on, the tokenizer is copied when vLLM copies it."""
        if _COPY in vars(self._class):
            delattr(self._class, _COPY)

    def _copier(self, tokenizer: Any, pooled: Any) -> Any:
        def copy_for_renderer(original: Any) -> Any:
            caller = sys._getframe(2).f_globals.get("__name__")  # frame 1 is `copy.copy`
            if original is tokenizer and caller == _RENDERER:
                self.drop()
                return pooled
            return copy._reconstruct(original, None, *original.__reduce_ex__(4))  # type: ignore[attr-defined]

        return copy_for_renderer
