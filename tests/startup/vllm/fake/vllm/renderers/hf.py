"""Applies chat templates."""

import copy
from typing import Any

from vllm.tokenizers.hf import maybe_make_thread_pool

_PROCESSOR_CHAT_TEMPLATES: dict[str, str] = {}


class HfRenderer:
    def __init__(self, config: Any, tokenizer: Any) -> None:
        tokenizer = copy.copy(tokenizer)
        self.tokenizer = maybe_make_thread_pool(tokenizer, config.renderer_num_workers + 1)


def _try_get_processor_chat_template(
    tokenizer: Any, *, revision: str | None, code_revision: str | None, trust_remote_code: bool
) -> str | None:
    return None
