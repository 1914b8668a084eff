"""Texts whose tokens split characters or words, and a function that feeds tokens one by one."""

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
]


def feed(detokenizer: IncrementalDetokenizer, token_ids: list[int]) -> str:
    """The text of the tokens; checks that it equals the detokenizer's `text`."""
    text = "".join(detokenizer.append([token_id]).text for token_id in token_ids)
    text += detokenizer.finish()
    assert detokenizer.text == text
    return text
