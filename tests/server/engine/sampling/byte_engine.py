"""An engine with a random model and the tokenizer whose tokens are bytes."""

from pathlib import Path
from typing import Any

from tests.server.engine.sampling.byte_tokenizer import EOS, VOCAB_SIZE, build_byte_tokenizer, save_byte_tokenizer
from tests.server.engine.small_engine import Completion, SmallEngine
from tests.server.engine.tiny_models import PACKED, build_model


def byte_engine(folder: Path, *, has_tokenizer: bool = True, **options: Any) -> SmallEngine:
    """Without a tokenizer, the folder has no tokenizer.json."""
    if has_tokenizer:
        save_byte_tokenizer(folder)
    model = build_model("llama", {**PACKED["llama"], "vocab_size": VOCAB_SIZE})
    return SmallEngine(model, **({"max_model_len": 500} | options), eos_token_ids=(EOS,), tokenizer_path=folder)


def text_of(completion: Completion) -> str:
    return build_byte_tokenizer().decode(completion.token_ids, skip_special_tokens=True)
