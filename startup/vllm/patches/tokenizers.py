"""Avoids loads of a tokenizer that are repeated or not needed. A standby loads it once for all its forks.

vLLM loads a model's tokenizer in the API server and in the engine, and once more for the chat template. Each
process caches the results. The keys of these caches contain the model's folder.
"""

import copy
import functools
import importlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from base.machine.file_stamps import FolderStamps, read_folder
from startup.ground.hooks.hook import Hook, Name, Text
from startup.imports.finder import after_import, wrap_after_import

logger = logging.getLogger(__name__)

_CACHED_TOKENIZER: Final = Name("vllm.tokenizers.registry", "cached_tokenizer_from_config", ("model_config",))
_READ: Final = (
    "skip_tokenizer_init", "hf_config", "tokenizer", "model", "runner_type", "tokenizer_mode", "tokenizer_revision",
    "code_revision", "trust_remote_code",
)  # fmt: skip
"""The attributes of `model_config` that any supported release of vLLM reads to load a tokenizer."""
_READS_NO_OTHER: Final = Text(
    (_CACHED_TOKENIZER.module,),
    rf"^def {_CACHED_TOKENIZER.path}\((?:(?!^def |model_config\.(?!(?:{'|'.join(_READ)})\b)).)*(?:^def |\Z)",
    f"{_CACHED_TOKENIZER.path} reads of model_config only {', '.join(_READ)}",
)
CHAT_TEMPLATE: Final = Name(
    "vllm.renderers.hf",
    "_try_get_processor_chat_template",
    ("tokenizer", "revision", "code_revision", "trust_remote_code"),
)
KEPT_TOKENIZERS: Final = Hook(
    "kept tokenizers",
    does="loads and copies a model's tokenizer and template once in a standby, into vLLM's own caches",
    without="a warm start loads them again, or copies them twice",
    gain="0.38 (0.31–0.62) of a warm start with a tokenizer of 151,000 tokens",
    needs=(_CACHED_TOKENIZER, _READS_NO_OTHER, CHAT_TEMPLATE),
)

_MAKE_POOL: Final = Name("vllm.tokenizers.hf", "maybe_make_thread_pool", ("tokenizer", "copies"))
_RENDERER: Final = "vllm.renderers.hf"
TOKENIZER_POOL: Final = KEPT_TOKENIZERS.part(
    _MAKE_POOL,
    Text((_RENDERER,), r"tokenizer = copy\.copy\(tokenizer\)", "copy.copy(tokenizer)"),
    Text((_RENDERER,), r"make_thread_pool\([^)]*renderer_num_workers \+ 1", "a pool of renderer_num_workers + 1"),
)

_NUM_COPIES: Final = 2
"""vLLM's default number of copies: one for each renderer thread and one more."""
_COPY: Final = "__copy__"

_OUTPUT: Final = "vllm.v1.structured_output"
_OUTPUT_TOKENIZER: Final = Name(_OUTPUT, "cached_tokenizer_from_config")
_OUTPUT_MANAGER: Final = Name(_OUTPUT, "StructuredOutputManager")
_PROCESSOR_LOADER: Final = Name("transformers.models.auto.processing_auto", "AutoTokenizer")
PROCESSOR_LOOKUP: Final = Hook(
    "tokenizer loaded once",
    does="passes the loaded tokenizer to the search for a model's processor; loads the engine's tokenizer for "
    "structured output when a request needs it",
    without="a model without a processor loads the tokenizer once more, and the engine loads a tokenizer before it "
    "is ready",
    gain="0.91 (0.89–0.95) of a cold start",
    needs=(CHAT_TEMPLATE, _PROCESSOR_LOADER),
)
LATE_TOKENIZER: Final = PROCESSOR_LOOKUP.part(
    _OUTPUT_TOKENIZER,
    _OUTPUT_MANAGER,
    Text((_OUTPUT,), r"self\.tokenizer = cached_tokenizer_from_config\(", "its assignment to self.tokenizer"),
    since=(0, 30),
)

_ATTRIBUTE: Final = "tokenizer"


class KeptTokenizers:
    """The tokenizers of some models in vLLM's caches, and the files from which they were read."""

    def __init__(self) -> None:
        self.models: list[Path] = []
        self._stamps: dict[Path, FolderStamps] = {}
        self._pools: list[PreparedPool] = []

    def fill(self, models: Sequence[Path]) -> None:
        """Loads the tokenizers of models in absolute folders. Skips a tokenizer that cannot be loaded."""
        with _offline():
            for model in models if KEPT_TOKENIZERS.applies else ():
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
        """Drops prepared copies. Called if the renderer changes its copy or needs more or fewer copies."""
        for pool in self._pools:
            pool.drop()

    def changed(self) -> Path | None:
        """A model whose files have changed since they were read. None if no files have changed."""
        return next((model for model, stamps in self._stamps.items() if read_folder(model) != stamps), None)


def _load_tokenizer(model: Path) -> Any:
    """Loads a tokenizer with the arguments that vLLM uses if no flag concerns the tokenizer."""
    given = {
        "skip_tokenizer_init": False,
        "tokenizer": str(model),
        "model": str(model),
        "runner_type": "generate",
        "tokenizer_mode": "auto",
        "trust_remote_code": False,
    }
    config = SimpleNamespace(**{**dict.fromkeys(_READ), **given})
    tokenizer = _CACHED_TOKENIZER.get(importlib.import_module(_CACHED_TOKENIZER.module))(config)
    renderer = CHAT_TEMPLATE.loaded
    if renderer is not None:
        CHAT_TEMPLATE.get(renderer)(tokenizer, revision=None, code_revision=None, trust_remote_code=False)
    return tokenizer


@contextmanager
def _offline() -> Iterator[None]:
    """Inside this context, the hub's client sends no requests."""
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
    """Copies of one tokenizer, made in advance. Later copying would take half of the API server's warm start.

    vLLM's renderer copies its cached tokenizer, and makes a pool of two more copies. This class makes the
    pool in advance with vLLM's own function. Only the renderer's call of `copy` returns the prepared pool.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._class = type(tokenizer)
        make_pool = _MAKE_POOL.get()
        pooled = make_pool(copy.copy(tokenizer), _NUM_COPIES)
        if self._class.__module__ == _MAKE_POOL.module and not hasattr(self._class, _COPY):
            setattr(self._class, _COPY, self._copier(tokenizer, pooled))

    def drop(self) -> None:
        """From now on, vLLM's renderer makes its own copies."""
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


def load_tokenizer_late() -> None:
    """From now on, the engine's manager of structured output loads its tokenizer on first use."""
    if LATE_TOKENIZER.applies:
        after_import(_OUTPUT_MANAGER.module, _replace_tokenizer, LATE_TOKENIZER)


def _replace_tokenizer(module: Any) -> None:
    load = _OUTPUT_TOKENIZER.get(module)
    manager = _OUTPUT_MANAGER.get(module)
    if hasattr(manager, _ATTRIBUTE):
        raise AttributeError(f"{manager.__name__} has an attribute {_ATTRIBUTE} of its own")
    _OUTPUT_TOKENIZER.replace(module, functools.wraps(load)(functools.partial(_Loading, load)))
    setattr(manager, _ATTRIBUTE, _LateAttribute())


class _Loading(functools.partial[Any]):
    """A call that loads the tokenizer, but was not made yet."""


class _LateAttribute:
    """An attribute to which a call is assigned. The call is made when the attribute is first read."""

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        try:
            value = vars(instance)[_ATTRIBUTE]
        except KeyError:
            raise AttributeError(_ATTRIBUTE) from None
        if isinstance(value, _Loading):
            value = vars(instance)[_ATTRIBUTE] = value()
        return value

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[_ATTRIBUTE] = value


def reuse_tokenizer() -> None:
    """From now on, vLLM's search for a processor uses the loaded tokenizer instead of loading it again."""
    if PROCESSOR_LOOKUP.applies:
        wrap_after_import(CHAT_TEMPLATE, _with_loaded_tokenizer, PROCESSOR_LOOKUP)


def _with_loaded_tokenizer(search: Callable[..., Any]) -> Callable[..., Any]:
    def search_with_tokenizer(tokenizer: Any, **options: Any) -> Any:
        processors: Any = _PROCESSOR_LOADER.loaded
        if processors is None:
            return search(tokenizer, **options)
        loader = _PROCESSOR_LOADER.get(processors)
        _PROCESSOR_LOADER.replace(processors, SimpleNamespace(from_pretrained=lambda *args, **kwargs: tokenizer))
        try:
            return search(tokenizer, **options)
        finally:
            _PROCESSOR_LOADER.replace(processors, loader)

    return search_with_tokenizer
