"""Grok-2's tokenizer: xAI's file `tokenizer.tok.json`, a byte-level BPE run by tiktoken."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import tiktoken
from msgspec import Meta
from transformers.utils.chat_template_utils import render_jinja_template

from server.renderers.detokenizer import Decode
from server.renderers.messages import Message
from server.renderers.tokenizers.files import GROK2_FILE, TokenizerLoadError, find_grok2_file, read_json_object

EOS = "<|eos|>"

_CONTROL_TOKENS = {
    "<|pad|>",
    "<|separator|>",
    EOS,
    *(f"<|reserved_{i}|>" for i in range(3, 128)),
    *(f"<|control{i}|>" for i in range(1, 705)),
}
"""Special tokens that are recognized in a text; others are ordinary text, unless the file allows them."""

_WORD_SPLIT_V1 = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""The meaning of `"word_split": "V1"`: contractions, words, single digits, punctuation, lines, spaces."""


CHAT_TEMPLATE = """
{%- set names = {'system': 'System', 'user': 'Human', 'assistant': 'Assistant'} -%}
{%- for message in messages -%}
  {%- if message.role not in names -%}
    {{ raise_exception('roles are system, user and assistant, got ' ~ message.role) }}
  {%- endif -%}
  {%- set content = message.content if message.role == 'assistant' else message.content | trim -%}
  {{ names[message.role] ~ ': ' ~ content ~ '<|separator|>\\n\\n' }}
{%- endfor -%}
{{ 'Assistant:' if add_generation_prompt }}"""
"""Grok-2's format, for checkpoints without a template; it does not support tools."""

_MOST_SPACES = 500_000
"""Most consecutive spaces handed to tiktoken: the pattern that cuts a text into words fails on a million."""


class Grok2Tokenizer:
    """Implements `Tokenizer`.

    Threads share one `tiktoken.Encoding`: it never changes, and has a matcher for each thread.
    """

    def __init__(self, file: "_File", settings: dict[str, Any]) -> None:
        """`settings` are those of tokenizer_config.json, which xAI does not publish, but others may add.

        Raises:
            ValueError: a token or the pattern is invalid, or the template is not text.
        """
        regular = {bytes(token.content): token.token for token in file.regular_tokens}
        special = {bytes(token.content).decode(): token.token for token in file.special_tokens}
        _check_tokens(file, regular, {*regular.values(), *special.values()})
        allowed = {bytes(text).decode() for text in file.default_allowed_special or ()}
        recognized = special.keys() & (allowed | _CONTROL_TOKENS)
        self.added_tokens: Mapping[int, str] = {token_id: text for text, token_id in special.items()}
        self.eos_token_id = special.get(EOS)
        self.chat_template = settings.get("chat_template") or CHAT_TEMPLATE
        if not isinstance(self.chat_template, str):
            raise ValueError("chat_template in tokenizer_config.json must be text")
        self._bytes_of_regular = {token_id: content for content, token_id in regular.items()}
        self._bytes_of = self._bytes_of_regular | {token_id: text.encode() for text, token_id in special.items()}
        self.vocab_size = max(self._bytes_of) + 1
        self.max_token_chars = max(map(len, self._bytes_of.values()))
        self._recognized = re.compile("|".join(map(re.escape, sorted(recognized, reverse=True))) or r"(?!)")
        self._encoding = tiktoken.Encoding(
            "grok-2",
            pat_str=file.pat_str or _WORD_SPLIT_V1,
            mergeable_ranks=regular,
            special_tokens=special,
        )

    @classmethod
    def from_folder(cls, path: Path) -> "Grok2Tokenizer":
        """Loads the tokenizer in a folder, or the file itself.

        Raises:
            TokenizerLoadError: the file is missing or broken.
        """
        file = find_grok2_file(path)
        if file is None:
            raise TokenizerLoadError(f"no tokenizer at {path}: there is no {GROK2_FILE}")
        try:
            return cls(msgspec.json.decode(file.read_bytes(), type=_File), _read_settings(file.parent))
        except (OSError, ValueError, msgspec.DecodeError) as err:
            raise TokenizerLoadError(f"cannot load the tokenizer in {file}: {err}") from err

    def encode(self, text: str, *, add_special_tokens: bool, limit: int | None = None) -> list[int]:
        """As `Tokenizer.encode`; `add_special_tokens` has no effect, since Grok-2 adds none to a text."""
        text.encode()
        token_ids = self._encode(text)
        return token_ids if limit is None else token_ids[max(0, len(token_ids) - limit) :]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return _decode(self._bytes_of_regular if skip_special_tokens else self._bytes_of, token_ids)

    def loop_decoder(self, *, skip_special_tokens: bool) -> Decode:
        return partial(self.decode, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes_of.get(token_id, b"")

    def describe(self) -> dict[str, Any]:
        return {"tokenizer_class": type(self).__name__, "chat_template": self.chat_template}

    def pieces(self, token_ids: list[int]) -> list[str]:
        """Grok-2's vocabulary holds bytes, which are written as text."""
        return [self.token_bytes(token_id).decode(errors="replace") for token_id in token_ids]

    def warm_up(self) -> None:
        """No effect: threads need no copy."""

    def apply_chat_template(self, conversation: list[Message], **options: Any) -> str:
        """Implements `AppliesChatTemplate`."""
        del options["tokenize"]
        [text], _ = render_jinja_template(conversations=[conversation], **options)
        return str(text)

    def _encode(self, text: str) -> list[int]:
        """Allows only the special tokens found in the text: passing all of them costs 0.1 ms per call."""
        special = set(self._recognized.findall(text))
        try:
            return self._encoding.encode(text, allowed_special=special, disallowed_special=())
        except ValueError:
            parts = _cut_spaces(text)
            if len(parts) == 1:
                raise
            return [token_id for part in parts for token_id in self._encode(part)]


def _read_settings(folder: Path) -> dict[str, Any]:
    settings = read_json_object(folder / "tokenizer_config.json")
    template = folder / "chat_template.jinja"
    return settings | {"chat_template": template.read_text(encoding="utf-8")} if template.is_file() else settings


def _decode(bytes_of: Mapping[int, bytes], token_ids: Sequence[int]) -> str:
    return b"".join([bytes_of.get(token_id, b"") for token_id in token_ids]).decode(errors="replace")


def _cut_spaces(text: str) -> list[str]:
    """Splits the text so that no part has more consecutive spaces than the pattern can match."""
    ends = [match.end() for match in re.finditer(rf"\s{{{_MOST_SPACES}}}(?=.)", text, re.DOTALL)]
    return [text[begin:end] for begin, end in zip([0, *ends], [*ends, len(text)], strict=True)]


_Bytes = list[Annotated[int, Meta(ge=0, le=255)]]


class _Token(msgspec.Struct, gc=False):
    """Not tracked by the garbage collector: with it, reading 131,072 of them takes three times as long."""

    token: Annotated[int, Meta(ge=0)]
    content: _Bytes = msgspec.field(name="bytes")


class _File(msgspec.Struct):
    regular_tokens: list[_Token]
    word_split: str
    special_tokens: list[_Token] = []
    pat_str: str | None = None
    vocab_size: int | None = None
    default_allowed_special: list[_Bytes] | None = None


def _check_tokens(file: _File, regular: dict[bytes, int], token_ids: set[int]) -> None:
    """Raises ValueError if tokens are missing or not distinct, or if the words are split in another way."""
    if file.word_split != "V1":
        raise ValueError(f"word_split must be 'V1', got {file.word_split!r}")
    num_tokens = len(file.regular_tokens) + len(file.special_tokens)
    if len(token_ids) != num_tokens:
        raise ValueError(f"{num_tokens - len(token_ids)} of {num_tokens} tokens have the id or bytes of another token")
    size = max(token_ids) + 1
    if file.vocab_size not in (None, size):
        raise ValueError(f"vocab_size is {file.vocab_size}, but the highest token id is {size - 1}")
    if missing := [byte for byte in range(256) if bytes([byte]) not in regular]:
        raise ValueError(f"regular_tokens must hold every single byte, but {missing[0]:#04x} is missing")
