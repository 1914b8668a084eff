"""An engine whose tokens are bytes, for tests of grammars. Also a schema of a person with a check."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from server.terms.types import GuidedDecoding
from tests.server.engine.sampling.byte_tokenizer import EOS, VOCAB_SIZE, build_byte_tokenizer, save_byte_tokenizer
from tests.server.engine.small_engine import Completion, SmallEngine
from tests.server.engine.tiny_models import PACKED, build_model

_PLACE = {
    "type": "object",
    "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
    "required": ["zip"],
    "additionalProperties": False,
}
_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "color": {"enum": ["red", "green", "blue"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "minItems": 1, "maxItems": 3},
        "home": {"$ref": "#/$defs/place"},
    },
    "required": ["name", "age", "color", "tags", "home"],
    "additionalProperties": False,
    "$defs": {"place": _PLACE},
}

PERSON = GuidedDecoding("json_schema", json.dumps(_PERSON | {"x-guidance": {"whitespace_flexible": False}}))
"""Allows no free whitespace, because a random model would generate nothing else."""


def assert_is_person(text: str) -> None:
    """Checks each rule of the schema without a library."""
    person: dict[str, Any] = json.loads(text)
    assert list(person) == ["name", "age", "color", "tags", "home"]
    assert isinstance(person["name"], str)
    assert len(person["name"]) <= 12
    assert isinstance(person["age"], int)
    assert 0 <= person["age"] <= 150
    assert person["color"] in ("red", "green", "blue")
    assert 1 <= len(person["tags"]) <= 3
    assert all(isinstance(tag, str) and len(tag) <= 4 for tag in person["tags"])
    assert list(person["home"]) == ["zip"]
    assert re.fullmatch("[0-9]{5}", person["home"]["zip"])


@cache
def byte_model() -> PreTrainedModel:
    """A Llama with the vocabulary of the byte tokenizer. Engines use it one after the other."""
    return build_model("llama", {**PACKED["llama"], "vocab_size": VOCAB_SIZE})


def byte_engine(folder: Path, **options: Any) -> SmallEngine:
    """An engine whose tokens are bytes. Saves its tokenizer in the folder."""
    tokenizer_path = save_byte_tokenizer(folder)
    options = {"max_model_len": 500} | options
    return SmallEngine(byte_model(), eos_token_ids=(EOS,), tokenizer_path=tokenizer_path, **options)


def text_of(completion: Completion) -> str:
    """The generated text without special tokens."""
    return build_byte_tokenizer().decode(completion.token_ids, skip_special_tokens=True)
