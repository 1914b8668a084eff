"""Reads all facts from the sources of a vLLM, which takes a tenth of a second; imports nothing of vLLM.

Beside the flags: variables, the names that vLLM registers, and which rules between flags it checks itself.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from startup.hooks.sources import Sources, packages_beside
from startup.vllm.facts.definitions import Definitions, UnreadableError
from startup.vllm.facts.flags import read_flags
from startup.vllm.facts.module_text import ModuleText
from startup.vllm.facts.vllm_facts import QuantizationFacts, Registries, VariableFact, VllmFacts, read_plugins

_ARCHITECTURE: Final = re.compile(r'^ {4}"(\w+)": *\(', re.MULTILINE)
_FORMER: Final = re.compile(r'^ {4}"(\w+)": *"([^"]*)"', re.MULTILINE)
_CONFIG: Final = "vllm.transformers_utils.config"
_MEMBER: Final = re.compile(r"^ {4}([A-Z][A-Z0-9_]*) *=", re.MULTILINE)
_QUANTIZATION: Final = "vllm.model_executor.layers.quantization"
_ROCM: Final = "vllm.platforms.rocm"
_DEPRECATED: Final = re.compile(r"^DEPRECATED_QUANTIZATION_METHODS\b[^=\n]*= *\[([^\]]*)\]", re.MULTILINE)
_SUPPORTED: Final = re.compile(r"^ {4}supported_quantization\b[^=\n]*= *\[([^\]]*)\]", re.MULTILINE)
_CLASS_OF_METHOD: Final = re.compile(r'^ {8}"([\w-]+)": *(\w+),', re.MULTILINE)
_CAPABILITY: Final = re.compile(r"    def get_min_capability\(cls\)[^\n]*:\n(?: {8}#[^\n]*\n)* {8}return (\d+)\n")
_NAME: Final = re.compile(r'"([\w-]+)"')
_MODULE: Final = "vllm.envs"
_TABLE: Final = re.compile(r"^environment_variables\b[^\n]*= *\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_ENTRY: Final = re.compile(r'^ {4}"(\w+)":', re.MULTILINE)
_NUMBER: Final = re.compile(r'\b(int|float)\(\s*os\.(?:get\w+|environ\.\w+)\(\s*"(\w+)"(?:,[^()]*)?\)\s*\)')
_CHOICES: Final = re.compile(r"env_with_choices\([^\[]*\[([^\]]*)\]")
_PORT_READER: Final = "get_vllm_port"
_SETTERS: Final = ("vllm.platforms.cpu", "vllm.config.vllm", "vllm.config.parallel", "vllm.transformers_utils.config")
"""Modules that set some of the variables themselves, before they are all read."""
_SETS: Final = re.compile(r'\bos\.environ\["(\w+)"\] *=')


def read_sources(sources: Sources, folders: list[str]) -> VllmFacts:
    """Reads the sources of vLLM, and the lists of the packages installed in the folders."""
    definitions = Definitions(sources)
    flags = read_flags(definitions)
    return VllmFacts(
        flags=flags.flags,
        has_all_flags=flags.is_complete and len(flags.flags) > 0,
        variables=read_variables(definitions),
        registries=read_registries(definitions),
        rules=read_rules(definitions),
        quantization=read_quantization(definitions),
        installed_plugins=read_plugins(folders),
    )


def read_facts_in(folder: Path) -> VllmFacts:
    """The facts about a vLLM in a folder such as the site-packages of another environment."""
    return read_sources(Sources(packages_beside(folder)), [str(folder)])


def read_variables(definitions: Definitions) -> tuple[VariableFact, ...]:
    """All variables of the table; those that vLLM sets itself may have any value."""
    module = definitions.module(_MODULE)
    table = _TABLE.search(module.text) if module is not None else None
    setters = filter(None, map(definitions.module, _SETTERS))
    own = {name for setter in setters for name in _SETS.findall(setter.text)}
    facts = _facts(table[1]) if table is not None else ()
    return tuple(VariableFact(fact.name) if fact.name in own else fact for fact in facts)


def _facts(table: str) -> Iterator[VariableFact]:
    entries = list(_ENTRY.finditer(table))
    ends = [*(entry.start() for entry in entries[1:]), len(table)]
    for entry, end in zip(entries, ends, strict=True):
        yield _fact(entry[1], table[entry.end() : end])


def _fact(name: str, getter: str) -> VariableFact:
    number = _NUMBER.search(getter)
    if number is not None and number[2] == name:
        return VariableFact(name, "int" if number[1] == "int" else "float")
    if getter.strip().startswith(f"{_PORT_READER},"):
        return VariableFact(name, "int")
    if (found := _CHOICES.search(getter)) is not None and getter.lstrip().startswith("env_with_choices"):
        choices = tuple(re.findall(r'"([^"]*)"', found[1]))
        is_case_free = "case_sensitive=False" in getter
        return VariableFact(name, "choice", tuple(map(str.lower, choices)) if is_case_free else choices, is_case_free)
    return VariableFact(name)


def read_registries(definitions: Definitions) -> Registries:
    """Reads all of them."""
    architectures, former = _architectures(definitions)
    return Registries(
        tool_parsers=_keys(definitions, "vllm.tool_parsers", "_TOOL_PARSERS_TO_REGISTER"),
        reasoning_parsers=_keys(definitions, "vllm.reasoning", "_REASONING_PARSERS_TO_REGISTER"),
        architectures=architectures,
        former_architectures=former,
        load_formats=_keys(definitions, "vllm.model_executor.model_loader", "_LOAD_FORMAT_TO_MODEL_LOADER"),
        config_types=tuple(_config_types(definitions)),
        config_formats=_keys(definitions, _CONFIG, "_CONFIG_FORMAT_TO_CONFIG_PARSER"),
        tokenizer_modes=_keys(definitions, "vllm.tokenizers.registry", "_VLLM_TOKENIZERS"),
        quantization_methods=_quantization_methods(definitions),
        attention_backends=_attention_backends(definitions),
    )


def read_quantization(definitions: Definitions) -> QuantizationFacts:
    """Reads the tables; what is not found is empty."""
    module = definitions.module(_QUANTIZATION)
    return QuantizationFacts(
        deprecated=_names(_DEPRECATED, module),
        min_capabilities=dict(_capabilities(definitions, module)) if module is not None else {},
        on_rocm=_names(_SUPPORTED, definitions.module(_ROCM)),
    )


def _keys(definitions: Definitions, module_name: str, table: str) -> tuple[str, ...]:
    module = definitions.module(module_name)
    return module.dict_keys(table) if module is not None else ()


def _architectures(definitions: Definitions) -> tuple[tuple[str, ...], dict[str, str]]:
    module = definitions.module("vllm.model_executor.models.registry")
    if module is None:
        return (), {}
    begin = module.text.find("_TEXT_GENERATION_MODELS")
    end = module.text.find("\nclass ", begin)
    tables = module.text[begin:end]
    return tuple(_ARCHITECTURE.findall(tables)), dict(_FORMER.findall(tables))


def _config_types(definitions: Definitions) -> Iterator[str]:
    """The keywords of `_CONFIG_REGISTRY`, and the keys of the dictionaries that it unpacks."""
    module = definitions.module(_CONFIG)
    table = module.expression("_CONFIG_REGISTRY") if module is not None else None
    for node in ast.walk(table) if table is not None else ():
        if isinstance(node, ast.keyword) and node.arg is not None:
            yield node.arg
        elif isinstance(node, ast.Dict):
            yield from (str(key.value) for key in node.keys if isinstance(key, ast.Constant))


def _quantization_methods(definitions: Definitions) -> tuple[str, ...]:
    module = definitions.module(_QUANTIZATION)
    node = module.expression("QuantizationMethods") if module is not None else None
    if module is None or node is None:
        return ()
    try:
        return tuple(str(option) for hint in definitions.hints(module, node) for option in hint.options)
    except UnreadableError:
        return ()


def _attention_backends(definitions: Definitions) -> tuple[str, ...]:
    module = definitions.module("vllm.v1.attention.backends.registry")
    found = module.class_text("AttentionBackendEnum") if module is not None else None
    return tuple(_MEMBER.findall(found.body)) if found is not None else ()


def _names(table: re.Pattern[str], module: ModuleText | None) -> tuple[str, ...]:
    found = table.search(module.text) if module is not None else None
    return tuple(_NAME.findall(found[1])) if found is not None else ()


def _capabilities(definitions: Definitions, module: ModuleText) -> Iterator[tuple[str, int]]:
    """Of each method whose class names a number: a class that computes it is left out."""
    for method, class_name in _CLASS_OF_METHOD.findall(module.text):
        imported = module.imports.get(class_name)
        source = definitions.module(imported.module) if imported is not None else None
        if source is None:
            continue
        begin = source.text.find(f"\nclass {class_name}(")
        end = source.text.find("\nclass ", begin + 1)
        found = _CAPABILITY.search(source.text, begin, end if end > 0 else len(source.text)) if begin >= 0 else None
        if found is not None:
            yield method, int(found[1])


class RuleSource(NamedTuple):
    """Where vLLM checks a rule between flags; without the pattern, a version may have lifted it."""

    modules: tuple[str, ...]
    """The places in the supported versions."""
    pattern: str
    """A regular expression for the source of the check."""


_CLI: Final = ("vllm.entrypoints.common.cli_args", "vllm.entrypoints.launchers.cli_args")
"""From vLLM 0.33 on, and before."""
_SERVER: Final = ("vllm.entrypoints.launchers.launcher", "vllm.entrypoints.openai.api_server")
_SERVE: Final = ("vllm.entrypoints.cli.serve",)
_ENGINE: Final = ("vllm.engine.arg_utils",)

RULES: Final = {
    "tool choice needs parser": RuleSource(_CLI, r"args\.enable_auto_tool_choice and not args\.tool_call_parser"),
    "logged outputs need requests": RuleSource(_CLI, r"args\.enable_log_outputs and not args\.enable_log_requests"),
    "chat template exists": RuleSource(_CLI, r"validate_chat_template\(args\.chat_template\)"),
    "per-request metrics need statistics": RuleSource(_CLI, r"enable-per-request-metrics requires engine statistics"),
    "keep-alive is not negative": RuleSource(_CLI, r"sse-keep-alive-interval must be a non-negative"),
    "grpc ports exclude each other": RuleSource(_CLI, r"--grpc and --grpc-port are mutually exclusive"),
    "headless has no API servers": RuleSource(_SERVE, r"cannot be \"\s*\"used with --headless"),
    "one load balancing": RuleSource(_SERVE, r"Cannot use more than one data parallel load balancing mode"),
    "served name needs model": RuleSource(
        ("vllm.utils.argparse_utils",), r"`model` should be provided as the first positional argument"
    ),
    "speculative flags exclude keys": RuleSource(_ENGINE, r"--speculative-config\['\{key\}'\] are mutually exclusive"),
    "variables are all parsed": RuleSource(("vllm.v1.engine.core",), r"^\s+enable_envs_cache\(\)"),
    "batch holds sequences": RuleSource(
        ("vllm.config.scheduler",), r"max_num_batched_tokens < self\.max_num_seqs"
    ),
    "batch holds model length": RuleSource(
        ("vllm.config.scheduler",),
        r"max_num_batched_tokens < max_model_len\s+and not self\.enable_chunked_prefill",
    ),
    "cpu adapters": RuleSource(("vllm.config.lora",), r"max_cpu_loras < self\.max_loras"),
    "heads divide": RuleSource(("vllm.config.model",), r"total_num_attention_heads % tensor_parallel_size != 0"),
    "quantization fits checkpoint": RuleSource(("vllm.config.model",), r"elif self\.quantization != quant_method"),
    "quantization is known": RuleSource(("vllm.config.model",), r"self\.quantization not in supported_quantization"),
    "quantization is not deprecated": RuleSource(
        ("vllm.config.model",), r"self\.quantization in me_quant\.DEPRECATED_QUANTIZATION_METHODS"
    ),
    "quantization has settings": RuleSource(
        ("vllm.model_executor.model_loader.weight_utils",), r"Cannot find the config file for"
    ),
    "quantization needs capability": RuleSource(
        ("vllm.config.vllm",), r"capability < quant_config\.get_min_capability\(\)"
    ),
    "tool parser is known": RuleSource((_CLI[0], *_SERVER), r"invalid tool call parser"),
    "reasoning parser is known": RuleSource((_CLI[0], *_SERVER), r"invalid reasoning parser"),
    "memory of CPUs is reserved": RuleSource(
        ("vllm.v1.worker.cpu_worker",), r"less than desired CPU memory utilization"
    ),
    "length is limited": RuleSource(("vllm.config.model",), r"VLLM_ALLOW_LONG_MAX_MODEL_LEN"),
}  # fmt: skip


def read_rules(definitions: Definitions) -> tuple[str, ...]:
    """The rules that this vLLM has."""
    return tuple(name for name, rule in RULES.items() if _is_found(definitions, rule))


def _is_found(definitions: Definitions, rule: RuleSource) -> bool:
    modules = filter(None, map(definitions.module, rule.modules))
    return any(re.search(rule.pattern, module.text, re.MULTILINE) for module in modules)
