"""The record of the installed vLLM: its flags, the names that it has registered, and other packages' plugins.

In a start, the API server's process loads vLLM's own parser and registries, and records them once for each
installation (`RecordFile.update`), as do `vllm-cli bake` and `doctor --hooks`. Later starts check their
arguments against the record before heavy imports. Without a record, a start gathers one once it has imported
vLLM's parser, and `--preflight-only` runs a process that writes it (`startup.vllm.launch.first_record`).
"""

import argparse
import configparser
import importlib
import inspect
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from base.machine.file_stamps import FileStamp, read_stamp
from envs import foreign
from startup.hook import Hook, Name, Text
from startup.imports.distributions import distribution_stamps
from startup.settings.flag import Flag, Limits, Shape, ValueKind
from startup.storage.caches import CachedValue, of_type
from startup.vllm_arguments.installed import InstalledVllm, find_vllm
from startup.vllm_arguments.json_shape import shape_of

logger = logging.getLogger(__name__)

_MAKE_PARSER: Final = Name("vllm.entrypoints.cli.serve", "make_arg_parser", ("parser",))
_PARSER: Final = Name("vllm.utils.argparse_utils", "FlexibleArgumentParser")
RECORDING: Final = Hook(
    "flags of vLLM",
    does="records vLLM's flags and registered names for the preflight of the next start",
    without="vLLM itself reports misspelt flags, after its imports",
    promise="the preflight reports them",
    needs=(_MAKE_PARSER, _PARSER),
)

ARCHITECTURES: Final = "architectures"
MODEL_TYPES: Final = ("model types", "model types of transformers")
CONNECTORS: Final = "connectors"
EXECUTOR: Final = "--distributed-executor-backend"
_REGISTRIES: Final = {
    "--tool-call-parser": Name("vllm.tool_parsers", "ToolParserManager.list_registered"),
    "--reasoning-parser": Name("vllm.reasoning", "ReasoningParserManager.list_registered"),
    "--quantization": Name("vllm.model_executor.layers.quantization", "QUANTIZATION_METHODS"),
    "--load-format": Name("vllm.model_executor.model_loader", "_LOAD_FORMAT_TO_MODEL_LOADER"),
    "--attention-backend": Name("vllm.v1.attention.backends.registry", "AttentionBackendEnum.__members__"),
    "--config-format": Name("vllm.transformers_utils.config", "_CONFIG_FORMAT_TO_CONFIG_PARSER"),
    EXECUTOR: Name("vllm.config.parallel", "DistributedExecutorBackend.__args__"),
    ARCHITECTURES: Name("vllm.model_executor.models.registry", "ModelRegistry.models"),
    MODEL_TYPES[0]: Name("vllm.transformers_utils.config", "_CONFIG_REGISTRY"),
    MODEL_TYPES[1]: Name("transformers.models.auto.configuration_auto", "CONFIG_MAPPING_NAMES"),
    CONNECTORS: Name("vllm.distributed.kv_transfer.kv_connector.factory", "KVConnectorFactory._registry"),
}
"""Objects in which vLLM keeps a flag's values or the names of models. Only imported objects are read."""

_CONFIGS: Final = ("ModelConfig", "CacheConfig", "ParallelConfig", "SchedulerConfig", "LoadConfig")
"""Classes of `vllm.config`. Each start makes an object of each class, from the flags for its fields."""
_VARIABLES: Final = Name("vllm.envs", "environment_variables")
_SETTERS: Final = ("vllm.platforms.cpu", "vllm.config.vllm", "vllm.config.parallel", "vllm.transformers_utils.config")
"""Modules of vLLM that set environment variables before vLLM reads them."""
_SETS: Final = re.compile(r'\bos\.environ\["(\w+)"\] *=')
_SOURCES: Final = (
    "startup.settings.flag",
    "startup.vllm_arguments",
    "vllm.config",
    "vllm.engine.arg_utils",
    "vllm.entrypoints",
    "vllm.envs",
    "vllm.platforms",
    "vllm.utils.argparse",
    "transformers.models.auto",
    *(name.module for name in _REGISTRIES.values()),
)
"""Prefixes of module names. The record is valid as long as the files of these modules are unchanged."""
_UTILIZATION: Final = 0.92
"""The share of a GPU's memory that vLLM 0.32 and 0.33 use by default."""
_LASTS_S: Final = 30 * 86400.0
_RENEWED_AFTER_S: Final = 86400.0
"""The age, in seconds, at which a successful start renews a record. Plugins that are on the path, but not
installed, may have changed."""
_MACHINES: Final = ("--mm-processor-device",)
"""Flags whose choices depend on the machine, and are therefore not recorded."""
_ALLOWED_PLUGINS: Final = "VLLM_PLUGINS"
_PREFIX: Final = "vllm."
_GENERAL: Final = "vllm.general_plugins"
_PLATFORM: Final = "vllm.platform_plugins"
_ALWAYS_LOADED: Final = "vllm.logits_processors"
_METADATA: Final = (".dist-info", ".egg-info")
_IN_EGG: Final = "EGG-INFO"

_KINDS: Final[dict[Any, ValueKind]] = {None: "text", str: "text", int: "int", float: "float", json.loads: "json"}
_KINDS_BY_NAME: Final[dict[str, ValueKind]] = {
    "human_readable_int": "count",
    "human_readable_int_or_auto": "token limit",
    "union_dict_and_str": "json or text",
    "parse_dataclass": "object",
}
"""Names of vLLM's functions that convert a value."""
_OPTIONAL: Final = "_optional_type"
_WRAPPERS: Final = (_OPTIONAL, "_parse_type")
"""vLLM's functions that call another function, which they name `return_type`."""


class Plugin(NamedTuple):
    """An entry point of another package."""

    group: str
    name: str
    package: str
    """The name of the folder with the package's metadata. This name contains the version."""

    @property
    def is_allowed(self) -> bool:
        """Whether vLLM loads it: VLLM_PLUGINS names it, is not set, or does not apply to its group."""
        if not foreign.is_set(_ALLOWED_PLUGINS) or self.group == _ALWAYS_LOADED:
            return True
        return self.name in foreign.text_of(_ALLOWED_PLUGINS).split(",")


class VllmRecord(NamedTuple):
    """The flags, names and variables that an installation of vLLM accepts."""

    flags: tuple[Flag, ...] = ()
    """All flags of vLLM's parser, including those of plugins. Empty if nothing is recorded."""
    names: dict[str, tuple[str, ...]] = {}
    """The registered values of flags, and the registered architectures, model types and connectors."""
    variables: tuple[Flag, ...] = ()
    """Environment variables that vLLM compares with a list of choices, described like flags."""
    set_by_vllm: tuple[str, ...] = ()
    """Environment variables that vLLM itself may set before it reads them, whatever the user has set."""
    installed_plugins: tuple[Plugin, ...] = ()
    """The entry points of other packages in all groups of vLLM."""

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        """The general and platform plugins that vLLM will load.

        Such a plugin may add different flags and names in each start.
        """
        return tuple(each for each in self.installed_plugins if each.group in (_GENERAL, _PLATFORM) and each.is_allowed)

    @property
    def has_other_platform(self) -> bool:
        """Whether a plugin provides the platform on which vLLM computes."""
        return any(plugin.group == _PLATFORM for plugin in self.plugins)


class RecordFile:
    """The record of one installation. Must be created before vLLM is imported and changes `sys.path`."""

    def __init__(self, vllm: InstalledVllm) -> None:
        plugins = read_plugins()
        self._plugins = tuple(chain.from_iterable(plugins.values()))
        self._installed = [folder for folder in plugins if folder.endswith("-packages")]
        key = (sys.version, str(vllm.folder), vllm.version, self._plugins, foreign.text_of(_ALLOWED_PLUGINS))
        self._kept = CachedValue("vllm-facts", key, distribution_stamps(), _LASTS_S)

    def read(self) -> VllmRecord:
        """Returns the record. If there is none, the result has only plugins."""
        return (self._kept.read(of_type(VllmRecord)) or VllmRecord())._replace(installed_plugins=self._plugins)

    def update(self, *, imports_all: bool = False, is_doubted: bool = False) -> None:
        """Writes a record of vLLM's modules, unless one of the last day exists. Raises no exception.

        Args:
            imports_all: also imports registries that the API process does not use, and replaces the record.
            is_doubted: replaces the record, because vLLM has started although the preflight found a fault.
        """
        is_due = imports_all or is_doubted or (self._kept.age_s or 0.0) > _RENEWED_AFTER_S
        if not RECORDING.applies or _MAKE_PARSER.loaded is None or (self.read().flags and not is_due):
            return
        for name in _REGISTRIES.values() if imports_all else ():
            with suppress(Exception):  # a library of the registry is missing here
                importlib.import_module(name.module)
        try:
            self._write(self.gather())
        except Exception as err:  # noqa: BLE001 - another version of vLLM
            logger.debug("vLLM's flags are not recorded: %s", err)

    def gather(self) -> VllmRecord:
        """A record of vLLM's imported modules. Takes 0.1 s, and writes nothing.

        Raises any exception if this vLLM has another parser, or if its parser is not imported.
        """
        flags = tuple(flags_of_parser(_build_parser(), _read_limits()))
        names, variables = dict(_read_names()), tuple(_read_variables())
        return VllmRecord(flags, names, variables, tuple(_read_set_by_vllm()), self._plugins)

    def forget(self) -> None:
        """Removes the record. Called if a start that itself records nothing has a fault by the record."""
        self._kept.remove()

    def _write(self, record: VllmRecord) -> None:
        modules = [module for name, module in sys.modules.copy().items() if name.startswith(_SOURCES)]
        files = {str(path) for module in modules if (path := getattr(module, "__file__", None))}
        self._kept.write(record._replace(installed_plugins=()), (*sorted(files), *self._installed))


def read_record(vllm: InstalledVllm) -> VllmRecord:
    """The record of an installed vLLM. If there is none, the result has only plugins."""
    return RecordFile(vllm).read()


def _build_parser() -> argparse.ArgumentParser:
    """Builds the parser with vLLM's own code, in some milliseconds."""
    parser = _PARSER.get(importlib.import_module(_PARSER.module))(add_help=False)
    built: argparse.ArgumentParser = _MAKE_PARSER.get()(parser)
    return built


def flags_of_parser(parser: argparse.ArgumentParser, limits: Mapping[str, Limits] = {}) -> Iterator[Flag]:
    """Yields the flags of vLLM's parser. `limits`: `Flag.parameter` -> the range of the number."""
    options: dict[argparse.Action, list[str]] = {}
    for option, action in parser._option_string_actions.items():
        options.setdefault(action, []).append(option)
    for action, names in options.items():
        flag = _flag(action, names)
        yield flag._replace(limits=limits.get(flag.parameter, ()))


def _flag(action: argparse.Action, options: list[str]) -> Flag:
    opposites = tuple(option for option in options if _turns_off(action, option))
    names = tuple(option for option in options if option not in opposites)
    is_plain = type(action) in (argparse._StoreAction, argparse._AppendAction)
    kind, is_optional = _kind_of(action.type) if is_plain else ("unknown", False)
    choices = tuple(action.choices) if action.choices is not None else None
    if kind == "unknown" or not set(names).isdisjoint(_MACHINES):
        choices = None
    shape = _shape_of(action.type) if kind == "object" else None
    default = action.default if isinstance(action.default, float) else None
    nargs = 1 if action.nargs is None else action.nargs
    return Flag(names, kind, nargs, opposites, is_optional, choices, shape=shape, default=default)


def _turns_off(action: argparse.Action, option: str) -> bool:
    if not isinstance(action, argparse.BooleanOptionalAction):
        return False
    result = argparse.Namespace()
    action(argparse.ArgumentParser(), result, None, option)
    return not getattr(result, action.dest)


def _kind_of(convert: Any) -> tuple[ValueKind, bool]:
    """How an argparse `type` converts a value, and whether the value may be missing."""
    name = getattr(convert, "__name__", "")
    if convert is not None and name in _WRAPPERS:
        kind, is_optional = _kind_of(_wrapped(convert))
        return kind, is_optional or name == _OPTIONAL
    if convert is not None and name == "<lambda>":
        return "folded" if convert("A-b") == "a_b" else "unknown", False
    return _KINDS.get(convert) or _KINDS_BY_NAME.get(name, "unknown"), False


def _wrapped(convert: Any) -> Any:
    return inspect.getclosurevars(convert).nonlocals["return_type"]


def _shape_of(convert: Any) -> Shape:
    """The JSON values that vLLM turns into an object. Any value if the class is not known."""
    while convert.__name__ in _WRAPPERS:
        convert = _wrapped(convert)
    with suppress(Exception):  # another version of vLLM
        return shape_of(inspect.signature(convert).parameters["cls"].default)
    return Shape()


def _read_limits() -> dict[str, Limits]:
    """Field of vLLM's configuration -> the range of its number. Empty if vLLM has other classes."""
    found: dict[str, Limits] = {}
    with suppress(Exception):
        for owner in (getattr(sys.modules["vllm.config"], name) for name in _CONFIGS):
            for name, part in shape_of(owner).fields.items():
                found[name] = (*found.get(name, ()), *part.limits)
    return found


def _read_variables() -> Iterator[Flag]:
    """The variables that vLLM compares with a list of choices."""
    with suppress(Exception):  # another version of vLLM
        for name, read in _VARIABLES.get(sys.modules[_VARIABLES.module]).items():
            settings = inspect.getclosurevars(read).nonlocals
            if "choices" in settings:
                yield _variable(name, settings)


def _variable(name: str, settings: Mapping[str, Any]) -> Flag:
    """Describes a variable by the arguments of the function of `vllm.envs` that has made its reader."""
    choices = settings["choices"]
    known = tuple(choices() if callable(choices) else choices)
    nargs = "*" if isinstance(settings.get("default"), list) else 1
    if settings.get("case_sensitive", True):
        return Flag((name,), nargs=nargs, choices=known)
    return Flag((name,), "lower", nargs, choices=tuple(map(str.lower, known)))


def _read_set_by_vllm() -> Iterator[str]:
    with suppress(Exception):  # another version of vLLM
        for path in {sys.modules[name].__file__ for name in _SETTERS if name in sys.modules}:
            yield from _SETS.findall(Path(str(path)).read_text(encoding="utf-8"))


def _read_names() -> Iterator[tuple[str, tuple[str, ...]]]:
    for flag, name in _REGISTRIES.items():
        with suppress(Exception):  # another version of vLLM: these names are not checked
            found = name.get()
            yield flag, tuple(sorted(map(str, found() if callable(found) else found)))


def default_utilization(record: VllmRecord | None = None) -> float:
    """The share of memory (of a GPU or, without GPUs, of the machine) that vLLM uses by default."""
    if record is None:
        record = read_record(vllm) if (vllm := find_vllm()) else VllmRecord()
    found = (flag.default for flag in record.flags if "--gpu-memory-utilization" in flag.names)
    return next(found, None) or _UTILIZATION


def is_named_now(registry: str, name: str) -> bool:
    """Whether a registry's source contains a name now. The source may be newer than the recorded registry."""
    pattern = rf"[\"']{re.escape(name)}[\"']|^ +{re.escape(name)} = "
    return Text(_REGISTRIES[registry].module, pattern, "a registered name").is_found()


def read_plugins() -> dict[str, tuple[Plugin, ...]]:
    """Folder or archive with packages -> its plugins, except vLLM's own.

    Plugins may add flags, parsers and models. The lists of entry points are read again only if the folder has
    changed, because a start calls this function several times. `importlib.metadata` would parse the lists of
    all packages.
    """
    found = {path: _plugins_in(path, read_stamp(path)) for path in map(Path, filter(None, sys.path))}
    return {str(path): plugins for path, plugins in found.items() if plugins is not None}


@cache
def _plugins_in(path: Path, _stamp: FileStamp) -> tuple[Plugin, ...] | None:
    """The plugins in an entry of `sys.path`. None if it contains no packages. `_stamp`: when it changed."""
    try:
        names = sorted(os.listdir(path))  # noqa: PTH208
    except NotADirectoryError:
        return _plugins_in_archive(path)
    except OSError:
        return None
    packages = [name for name in names if name.endswith(_METADATA) or name == _IN_EGG]
    return tuple(chain.from_iterable(_plugins_of(path / name) for name in packages)) if packages else None


def _plugins_of(package: Path) -> Iterator[Plugin]:
    with suppress(OSError, UnicodeDecodeError, configparser.Error):
        if f"[{_PREFIX}" not in (text := (package / "entry_points.txt").read_text(encoding="utf-8")):
            return
        parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
        parser.optionxform = str  # type: ignore[assignment, method-assign]  # keeps the case of names
        parser.read_string(text)
        for group in parser.sections():
            yield from _foreign(group, parser.items(group), package.name)


def _plugins_in_archive(path: Path) -> tuple[Plugin, ...] | None:
    """The plugins in a zip file or egg, as vLLM finds them. None if it is no such file."""
    from importlib.metadata import distributions  # archives are rare

    found: list[Plugin] = []
    with suppress(Exception):  # whatever an importer raises for a file that it cannot read
        for package in distributions(path=[str(path)]):
            for entry in package.entry_points:
                found += _foreign(entry.group, [(entry.name, entry.value)], f"{package.name} {package.version}")
    return tuple(found) or None


def _foreign(group: str, items: Iterable[tuple[str, str]], package: str) -> Iterator[Plugin]:
    for name, value in items if group.startswith(_PREFIX) else ():
        if not value.startswith(_PREFIX):
            yield Plugin(group, name, package)
