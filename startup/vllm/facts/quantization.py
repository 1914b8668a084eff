"""Reads what vLLM knows of its quantization methods: deprecated ones, and the GPUs that they need."""

import re
from collections.abc import Iterator
from typing import Final

from startup.vllm.facts.definitions import Definitions
from startup.vllm.facts.module_text import ModuleText
from startup.vllm.facts.vllm_facts import QuantizationFacts

_MODULE: Final = "vllm.model_executor.layers.quantization"
_ROCM: Final = "vllm.platforms.rocm"
_DEPRECATED: Final = re.compile(r"^DEPRECATED_QUANTIZATION_METHODS\b[^=\n]*= *\[([^\]]*)\]", re.MULTILINE)
_SUPPORTED: Final = re.compile(r"^ {4}supported_quantization\b[^=\n]*= *\[([^\]]*)\]", re.MULTILINE)
_CLASS_OF_METHOD: Final = re.compile(r'^ {8}"([\w-]+)": *(\w+),', re.MULTILINE)
_CAPABILITY: Final = re.compile(r"    def get_min_capability\(cls\)[^\n]*:\n(?: {8}#[^\n]*\n)* {8}return (\d+)\n")
_NAME: Final = re.compile(r'"([\w-]+)"')


def read_quantization(definitions: Definitions) -> QuantizationFacts:
    """Reads the tables; what is not found is empty."""
    module = definitions.module(_MODULE)
    return QuantizationFacts(
        deprecated=_names(_DEPRECATED, module),
        min_capabilities=dict(_capabilities(definitions, module)) if module is not None else {},
        on_rocm=_names(_SUPPORTED, definitions.module(_ROCM)),
    )


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
