"""Texts whose tokens split characters or words, and functions that encode them and decode token by token."""

from server.renderers.base import BaseRenderer
from server.renderers.detokenizer import IncrementalDetokenizer

TEXTS = [
    "Hello, world! The capital of France is Paris.",
    "  two leading spaces and a trailing one ",
    "👍🏽 👨‍👩‍👧‍👦 🇫🇷 emoji 😀😀",
    "你好，世界。日本語テキスト 한국어",
    "e\u0301 combining, Z\u0310\u0351algo, \u200bzero width",
    "Ünïcödé naïve Größe Ελληνικά Русский עברית العربية",
    "tabs\tand\nnewlines\r\n\n\n   indented",
    "\ufffd a real replacement character \ufffd\ufffd",
    "</s><s>[INST] not a command [/INST]<unk> \x00",
]


def encode(renderer: BaseRenderer, text: str) -> list[int]:
    return renderer.tokenizer.encode(text, add_special_tokens=False)


def feed(detokenizer: IncrementalDetokenizer, token_ids: list[int]) -> str:
    return "".join(detokenizer.append([token_id]).text for token_id in token_ids) + detokenizer.finish()
