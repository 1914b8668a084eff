"""Records the values that vLLM hashes to name a compiled model, and whether vLLM loads or compiles the model.

vLLM looks for a compiled model in a folder whose name is a hash of its environment and configuration. Each
part of the configuration hashes its values by name (`get_hash_factors`) or, in older code, as the text of a
list (`safe_hash`). While vLLM computes the hash, the arguments of both functions are recorded.
"""

import ast
import contextlib
import functools
import hashlib
import inspect
import json
import linecache
import logging
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from envs import foreign
from envs.redaction import hide_in_arguments, is_secret_name
from startup.compiled_models.reasons import ENVIRONMENT
from startup.hook import Hook, Name, Text
from startup.imports.finder import alters, wraps

if TYPE_CHECKING:
    from startup.compiled_models.exchange import Exchange

logger = logging.getLogger(__name__)

_DECORATORS: Final = "vllm.compilation.decorators"
_GET_FACTORS: Final = Name("vllm.config.utils", "get_hash_factors", ("config", "ignored_factors"))
_HASH_TEXT: Final = Name("vllm.utils.hashing", "safe_hash", ("data", "usedforsecurity"))
_HASH_FACTORS: Final = Name("vllm.config.utils", "hash_factors", ("items",))
_ENVIRONMENT: Final = Name("vllm.envs", "compile_factors", ())
_LOAD: Final = Name(_DECORATORS, "_try_load_aot_compiled_fn", ("model", "aot_compilation_path"))
_COMPILE: Final = Name("vllm.compilation.wrapper", "TorchCompileWithNoGuardsWrapper.aot_compile")
_INIT_DEVICE: Final = Name("vllm.v1.worker.worker_base", "WorkerWrapperBase.init_device", ())
COMPILED_MODELS: Final = Hook(
    "records of compiled models",
    does="records what vLLM hashes to name a compiled model, and whether it is loaded; adds the hardware to the "
    "name; keeps Triton's kernels beside the model",
    without="the log has no reasons, and --compile-cache does not work",
    promise="the log says why a start compiles",
    needs=(
        _GET_FACTORS,
        _HASH_TEXT,
        _HASH_FACTORS,
        _ENVIRONMENT,
        _LOAD,
        _COMPILE,
        _INIT_DEVICE,
        Text("vllm.compilation.caching", r"hash_factors\(envs\.compile_factors\(\)\)", "the environment's hash"),
        Text("vllm.compilation.caching", r"vllm_config\.compute_hash\(\)", "the configuration's hash"),
        Text(_DECORATORS, r"self\._aot_compilation_path = aot_compilation_path", "the path of a compiled model"),
    ),
    places={"forkserver", "template"},
)

SECRET: Final = "(set)"
REFUSED: Final = "--compile-cache require: vLLM would compile the model"
_OWN_HASH: Final = "VllmConfig"
"""The class that hashes only its parts' hashes and `additional_config`. The parts are recorded alone."""
_NOT_CACHED: Final = (0, 1)
"""Compilation modes in which vLLM has no cache: no compilation, and torch's own compilation."""
_FAILURE: Final = "due to a load failure"
"""A part of vLLM's warning that a compiled model could not be loaded. The last argument is the reason."""


class HashedFactors(NamedTuple):
    """The values of vLLM's environment and configuration that vLLM hashes."""

    digest: str
    """A digest of the hashes of environment and configuration. Equal digests mean the same compiled model."""
    groups: dict[str, dict[str, Any]]
    """Group -> name -> the hashed value as JSON. A group is `environment` or a configuration class."""


class _State:
    noted: list[tuple[str, Mapping[str, Any] | str, CodeType | None]] | None = None
    """The arguments that vLLM's hash functions got while a hash is computed. At other times, None."""
    exchange: "Exchange | None" = None
    """Used by this process and by processes that it forks later. None in a template process."""


def report_compiled_models(exchange: "Exchange") -> None:
    """Makes this process and its forks, if they are workers, report the models that they load or compile."""
    _State.exchange = exchange


def factors_of(config: Any) -> HashedFactors:
    """The values that vLLM hashes for a configuration in this process. Calls vLLM's hash functions."""
    noted = _State.noted = []
    try:
        environment = _ENVIRONMENT.get()()
        hashes = [_HASH_FACTORS.get()(environment), config.compute_hash()]
    finally:
        _State.noted = None
    groups = {ENVIRONMENT: dict(environment)}
    for owner, values, code in noted:
        name = owner
        if owner in groups:
            number = sum(key.startswith(owner) for key in groups) + 1
            name = f"{owner} {number}"
        opened = _named(values, code) if isinstance(values, str) else map(_opened, values.items())
        groups[name] = dict(opened)
    digest = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
    return HashedFactors(digest, _without_secrets("", json.loads(json.dumps(groups, default=repr))))


def _factors_if_known(config: Any) -> HashedFactors | None:
    """The factors. If this version of vLLM hashes in an unknown way, logs a warning and returns None."""
    try:
        return factors_of(config)
    except Exception as err:  # noqa: BLE001 - another version of vLLM
        logger.warning("what vLLM hashes to name its compiled model cannot be read: %s", err)
        return None


def _without_secrets(name: str, value: Any) -> Any:
    if value and is_secret_name(name):
        return SECRET
    if isinstance(value, dict):
        return {_without_secrets("", inner): _without_secrets(inner, item) for inner, item in value.items()}
    if isinstance(value, list):  # possibly the words of a command line
        texts = iter(hide_in_arguments((item for item in value if isinstance(item, str)), lambda _: SECRET))
        return [next(texts) if isinstance(item, str) else _without_secrets("", item) for item in value]
    return hide_in_arguments([value], lambda _: SECRET)[0] if isinstance(value, str) else value


def _opened(item: tuple[str, Any]) -> tuple[str, Any]:
    """Parses a model's configuration, which vLLM hashes as JSON text."""
    name, value = item
    if isinstance(value, str) and value.startswith("{"):
        with contextlib.suppress(ValueError):
            return name, json.loads(value)
    return name, value


def _named(text: str, code: CodeType | None) -> Iterator[tuple[str, Any]]:
    """Yields the items of a list that vLLM has hashed. Names are the expressions that `code` appends."""
    try:
        values = ast.literal_eval(text)
        names = _appended(code) if code is not None else []
    except (ValueError, SyntaxError, OSError):
        values, names = None, []
    if not isinstance(values, list) or len(names) != len(values):
        yield "", text
        return
    for name, value in zip(names, values, strict=True):
        if not name.endswith("compute_hash()"):
            yield name.removeprefix("self."), value


@functools.cache
def _appended(code: CodeType) -> list[str]:
    """The expressions that a function appends to a list. Raises OSError if its source is not available."""
    lines = linecache.getlines(code.co_filename)[code.co_firstlineno - 1 :]  # `getsource` would visit all modules
    if not lines:
        raise OSError(f"{code.co_filename} has no source of {code.co_name}")
    tree = ast.parse(textwrap.dedent("".join(inspect.getblock(lines))))
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    found = []
    for call in calls:
        if isinstance(call.func, ast.Attribute) and call.func.attr == "append":
            found.append((call.lineno, ast.unparse(call.args[0])))
    return [name for _, name in sorted(found)]


@wraps(COMPILED_MODELS, _ENVIRONMENT)
def _with_hardware(get: Callable[[], Mapping[str, Any]]) -> Callable[[], Mapping[str, Any]]:
    """Adds the hardware to the environment variables that vLLM hashes for its keys."""

    def get_with_hardware() -> Mapping[str, Any]:
        name = _State.exchange.read_hardware() if _State.exchange is not None else ""
        return {**get(), "hardware": name} if name else get()

    return get_with_hardware


@wraps(COMPILED_MODELS, _GET_FACTORS)
def _note_factors(get: Callable[..., Mapping[str, Any]]) -> Callable[..., Mapping[str, Any]]:
    def get_and_note(config: Any, *args: Any, **kwargs: Any) -> Mapping[str, Any]:
        factors = get(config, *args, **kwargs)
        if _State.noted is not None:
            _State.noted.append((type(config).__name__, factors, None))
        return factors

    return get_and_note


@wraps(COMPILED_MODELS, _HASH_TEXT)
def _note_text(hash_text: Callable[..., Any]) -> Callable[..., Any]:
    def hash_and_note(data: bytes, *args: Any, **kwargs: Any) -> Any:
        if _State.noted is not None:
            caller = sys._getframe(1)
            owner = type(caller.f_locals.get("self")).__name__
            if owner != _OWN_HASH:
                _State.noted.append((owner, data.decode(), caller.f_code))
            elif data.startswith(b"{"):
                _State.noted.append(("additional_config", json.loads(data), None))
        return hash_text(data, *args, **kwargs)

    return hash_and_note


class _Failures(logging.Filter):
    """Collects the reasons from vLLM's warnings that a compiled model could not be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        if _FAILURE in str(record.msg) and isinstance(record.args, tuple):
            reason = " ".join(str(record.args[-1]).split())
            self.reasons.append(reason[:300])
        return True


@wraps(COMPILED_MODELS, _INIT_DEVICE)
def _report_early(init_device: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def init_and_tell(self: Any) -> Any:
        result = init_device(self)
        config = self.vllm_config
        if _State.exchange is not None and (factors := _factors_if_known(config)) is not None:
            compiles = int(config.compilation_config.mode or 0) not in _NOT_CACHED
            refusal = _State.exchange.report_early(compiles=compiles, digest=factors.digest, factors=factors.groups)
            if refusal is not None:
                raise RuntimeError(f"{REFUSED}, because {refusal}")
        return result

    return init_and_tell


@alters(COMPILED_MODELS, _DECORATORS)
def _replace_load(decorators: ModuleType) -> None:
    """Replaces vLLM's function that loads a compiled model. vLLM calls it once per model and process."""
    load = _LOAD.get(decorators)

    @functools.wraps(load)
    def load_and_record(model: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        exchange = _State.exchange
        if exchange is None:
            return load(model, path, *args, **kwargs)
        exchange.wait_for_load()
        _keep_kernels_beside(path)
        factors = _factors_if_known(model.vllm_config)
        exchange.note(path, digest=factors.digest if factors is not None else "")
        failures = _Failures()
        decorators.logger.addFilter(failures)
        begin_ns = time.monotonic_ns()
        try:
            loaded = load(model, path, *args, **kwargs)
        finally:
            decorators.logger.removeFilter(failures)
        if loaded is not None:
            exchange.note(path, loaded_s=(time.monotonic_ns() - begin_ns) / 1e9)
            return _noting_use(model, path, loaded)
        if failures.reasons:
            exchange.note(path, error=failures.reasons[-1])
        return None

    _LOAD.replace(decorators, load_and_record)


def _keep_kernels_beside(path: str) -> None:
    """Makes Triton keep its kernels in the compiled model's folder, unless the user has named a folder.

    Otherwise, the kernels are in this folder or in Triton's own folder. This depends on which of torch's
    processes loads a kernel first.
    """
    if not foreign.text_of("TRITON_CACHE_DIR"):
        os.environ["TRITON_CACHE_DIR"] = str(Path(path).parents[1] / "inductor_cache/triton/0")


def _noting_use(model: Any, path: str, loaded: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps the loaded model. The first call records the use. Later calls go to the loaded model itself."""

    def use_first(*args: Any, **kwargs: Any) -> Any:
        result = loaded(*args, **kwargs)
        if _State.exchange is not None:
            _State.exchange.note(path, is_used=True)
        model.aot_compiled_fn = loaded
        return result

    return use_first


@wraps(COMPILED_MODELS, _COMPILE)
def _with_record(compile_now: Callable[..., Any]) -> Callable[..., Any]:
    def compile_and_record(self: Any, *args: Any, **kwargs: Any) -> Any:
        begin_ns = time.monotonic_ns()
        compiled = compile_now(self, *args, **kwargs)
        exchange, path = _State.exchange, getattr(self, "_aot_compilation_path", None)
        if exchange is not None and path is not None:
            took_s = (time.monotonic_ns() - begin_ns) / 1e9
            folder = str(getattr(self.vllm_config.compilation_config, "cache_dir", "") or "")
            exchange.note(path, compiled_s=took_s, more=folder, sources=_sources(compiled))
        return compiled

    return compile_and_record


def _sources(compiled: Any) -> dict[str, str]:
    """Module -> SHA-256 of its traced source. Empty if this version of torch does not list the sources."""
    with contextlib.suppress(AttributeError, TypeError):
        inlined = compiled.source_info().inlined_sources
        return {source.module: hashlib.sha256(source.content.encode()).hexdigest() for source in inlined}
    return {}
