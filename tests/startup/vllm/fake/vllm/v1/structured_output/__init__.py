"""vLLM's module for structured output. The fake vLLM has no structured output."""

from typing import Any

from vllm.tokenizers.registry import cached_tokenizer_from_config
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend


class StructuredOutputManager:
    backend = XgrammarBackend

    def __init__(self, model_config: Any) -> None:
        self.tokenizer = cached_tokenizer_from_config(model_config=model_config)
