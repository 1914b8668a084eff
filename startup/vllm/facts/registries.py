"""Reads the names that vLLM registers: parsers, architectures, formats, methods of quantization."""

import ast
import re
from collections.abc import Iterator
from typing import Final

from startup.vllm.facts.definitions import Definitions, UnreadableError
from startup.vllm.facts.module_text import ModuleText
from startup.vllm.facts.vllm_facts import QuantizationFacts, Registries

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
