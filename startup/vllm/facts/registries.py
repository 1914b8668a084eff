"""Reads the names that vLLM registers: parsers, architectures, formats, quantization methods."""

import ast
import re
from collections.abc import Iterator
from typing import Final

from startup.vllm.facts.definitions import Definitions, UnreadableError
from startup.vllm.facts.vllm_facts import Registries

_ARCHITECTURE: Final = re.compile(r'^ {4}"(\w+)": *\(', re.MULTILINE)
_FORMER: Final = re.compile(r'^ {4}"(\w+)": *"([^"]*)"', re.MULTILINE)
_CONFIG: Final = "vllm.transformers_utils.config"
_MEMBER: Final = re.compile(r"^ {4}([A-Z][A-Z0-9_]*) *=", re.MULTILINE)


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
    module = definitions.module("vllm.model_executor.layers.quantization")
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
