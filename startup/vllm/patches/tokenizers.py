"""Avoids loads of a tokenizer that are repeated or not needed. A standby loads it once for all its forks.

vLLM loads a model's tokenizer in the API server and in the engine, and once more for the chat template. Each
process caches the results. The keys of these caches contain the model's folder.
"""

import copy
import fnmatch
import functools
import importlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from base.machine.file_stamps import FolderStamps, read_folder
from startup.files.model.model_place import FolderListing
from startup.files.model.wanted_files import MISTRAL_WEIGHTS, WantedFiles
from startup.hook import Hook, Name, Text, uses
from startup.imports.finder import alters, wraps
from startup.storage.temp_folder import own_folder, usable_folder

logger = logging.getLogger(__name__)

_CACHED_TOKENIZER: Final = Name("vllm.tokenizers.registry", "cached_tokenizer_from_config", ("model_config",))
_READ: Final = (
    "skip_tokenizer_init",
    "hf_config",
    "tokenizer",
    "model",
    "runner_type",
    "tokenizer_mode",
    "tokenizer_revision",
    "code_revision",
    "trust_remote_code",
)
"""The attributes of `model_config` that any supported release of vLLM reads to load a tokenizer."""
_READS_NO_OTHER: Final = Text(
    _CACHED_TOKENIZER.module,
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
    does="loads a model's tokenizer and template once in a standby, into vLLM's own caches",
    without="a warm start loads them again",
    gain_in=("CPU, eager, beside a standby",),
    needs=(_CACHED_TOKENIZER, _READS_NO_OTHER, CHAT_TEMPLATE),
)

_OUTPUT: Final = "vllm.v1.structured_output"
_OUTPUT_TOKENIZER: Final = Name(_OUTPUT, "cached_tokenizer_from_config")
_OUTPUT_MANAGER: Final = Name(_OUTPUT, "StructuredOutputManager")
_PROCESSOR_LOADER: Final = Name("transformers.models.auto.processing_auto", "AutoTokenizer")
PROCESSOR_LOOKUP: Final = Hook(
    "tokenizer loaded once",
    does="passes the tokenizer to the search for a processor; loads that of structured output when a request needs it",
    without="a model without a processor loads it once more, and the engine before it is ready",
    gain_in=("CPU, eager, later", "stand-in, compiled, later"),
    needs=(CHAT_TEMPLATE, _PROCESSOR_LOADER),
    places={"api"},
)
LATE_TOKENIZER: Final = PROCESSOR_LOOKUP.part(
    _OUTPUT_TOKENIZER,
    _OUTPUT_MANAGER,
    Text(_OUTPUT, r"self\.tokenizer = cached_tokenizer_from_config\(", "its assignment to self.tokenizer"),
    since=(0, 30),
    places={"forkserver"},
)

_ATTRIBUTE: Final = "tokenizer"
_MODES: Final = ("auto", "hf", "slow", "mistral")
"""Values of --tokenizer-mode with which vLLM reads only files that `WantedFiles` chooses."""
_MOST_KEPT_BYTES: Final = 64 << 20
"""Twice the largest known tokenizer."""


class CachedTokenizers:
    """The tokenizers of some models in vLLM's caches, and the files from which they were read."""

    def __init__(self) -> None:
        self.models: list[Path] = []
        self._stamps: dict[Path, FolderStamps] = {}

    def fill(self, models: Sequence[Path]) -> None:
        """Loads the tokenizers of models in absolute folders. Skips a tokenizer that cannot be loaded."""
        with _offline():
            for model in models if KEPT_TOKENIZERS.applies else ():
                stamps = read_folder(model)
                try:
                    _load_tokenizer(model)
                    _cached.add(str(model))
                except Exception as err:  # noqa: BLE001 - a start reports faults of its model
                    logger.debug("the tokenizer of %s is not kept: %s", model, err)
                self.models.append(model)
                self._stamps[model] = stamps

    def changed(self) -> Path | None:
        """A model whose files have changed since they were read. None if no files have changed."""
        for model, stamps in self._stamps.items():
            if read_folder(model) != stamps:
                return model
        return None


_PLAIN: Final = {
    "skip_tokenizer_init": False,
    "runner_type": "generate",
    "tokenizer_mode": "auto",
    "tokenizer_revision": None,
    "trust_remote_code": False,
}
"""The arguments with which vLLM loads a tokenizer if no flag concerns the tokenizer."""
_cached: Final[set[str]] = set()
"""The folders whose tokenizers are in vLLM's cache, in this process and its forks."""


def _load_tokenizer(model: Path) -> Any:
    fields = {**dict.fromkeys(_READ), **_PLAIN, "tokenizer": str(model), "model": str(model)}
    module = importlib.import_module(_CACHED_TOKENIZER.module)
    tokenizer = _CACHED_TOKENIZER.get(module)(SimpleNamespace(**fields))
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


@alters(LATE_TOKENIZER, _OUTPUT)
def _replace_tokenizer(module: Any) -> None:
    """Makes the engine's manager of structured output load its tokenizer on first use.

    When vLLM itself would load the tokenizer, its files are read into memory. The first use may be weeks
    later, when the folder has been removed, or replaced by the model's next version.
    """
    if not uses("lean imports"):
        return
    load = _OUTPUT_TOKENIZER.get(module)
    manager = _OUTPUT_MANAGER.get(module)
    if hasattr(manager, _ATTRIBUTE):
        raise AttributeError(f"{manager.__name__} has an attribute {_ATTRIBUTE} of its own")
    _OUTPUT_TOKENIZER.replace(module, functools.wraps(load)(functools.partial(_load_later, load)))
    setattr(manager, _ATTRIBUTE, property(_get_tokenizer, _set_tokenizer))


def _load_later(load: Callable[..., Any], model_config: Any) -> Any:
    """Returns a call that loads the tokenizer from what its files contain now.

    Loads it at once if vLLM has it in its cache, if it may read files of any name, or if they are too large.
    """
    values = {name: getattr(model_config, name, value) for name, value in _PLAIN.items()}
    folder = Path(model_config.tokenizer)
    is_known = values["tokenizer_mode"] in _MODES and not values["trust_remote_code"]
    is_cached = str(folder) in _cached and values == _PLAIN
    files = _read_files(folder.resolve()) if is_known and not is_cached else {}
    return functools.partial(_load_from, load, model_config, files) if files else load(model_config=model_config)


def _read_files(folder: Path) -> dict[str, bytes]:
    """Reads a tokenizer's files. Mistral's weights are empty files, because vLLM looks only at their names.

    The result is empty if there is no such folder, if a file cannot be read, or if they are too large.
    """
    names = FolderListing(folder).names
    read = WantedFiles(role="tokenizer", engine="vllm").choose_small(names)
    with suppress(OSError):
        if sum((folder / name).stat().st_size for name in read) <= _MOST_KEPT_BYTES:
            weights = dict.fromkeys(fnmatch.filter(names, MISTRAL_WEIGHTS), b"")
            return {**weights, **{name: (folder / name).read_bytes() for name in read}}
    return {}


def _load_from(load: Callable[..., Any], model_config: Any, files: Mapping[str, bytes]) -> Any:
    """Loads the tokenizer from files, which exist in a temporary folder only meanwhile."""
    config = copy.copy(model_config)
    with own_folder(usable_folder()) as folder:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        config.tokenizer = str(folder)
        if model_config.model == model_config.tokenizer:
            config.model = str(folder)
        return load(model_config=config)


def _get_tokenizer(manager: Any) -> Any:
    """The attribute's value. A call that was assigned is made when the attribute is first read."""
    try:
        value = vars(manager)[_ATTRIBUTE]
    except KeyError:
        raise AttributeError(_ATTRIBUTE) from None
    if isinstance(value, functools.partial):
        value = vars(manager)[_ATTRIBUTE] = value()
    return value


def _set_tokenizer(manager: Any, value: Any) -> None:
    vars(manager)[_ATTRIBUTE] = value


@wraps(PROCESSOR_LOOKUP, CHAT_TEMPLATE)
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
