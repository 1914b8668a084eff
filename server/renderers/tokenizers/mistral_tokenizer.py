"""A tokenizer in one of Mistral's own formats, tekken or SentencePiece, loaded by mistral-common."""

import re
from collections.abc import Sequence, Set
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy, SpecialTokens
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer as LoadedTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from base.errors import RequestError
from server.renderers.detokenizer import Decode
from server.renderers.tokenizers.files import TokenizerLoadError, find_mistral_file

_ALWAYS_WRITTEN = frozenset({"[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"})
"""Special tokens that are written even if such tokens are skipped: they delimit tool calls and reasoning."""

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class MistralTokenizer:
    """Implements `Tokenizer`; tiktoken and SentencePiece keep no state between calls."""

    def __init__(self, loaded: LoadedTokenizer[Any, Any, Any, Any, Any]) -> None:
        self.loaded = loaded
        self._raw = loaded.instruct_tokenizer.tokenizer
        self.version = int(self._raw.version.value.removeprefix("v"))
        self.vocab_size: int = self._raw.n_words
        self.eos_token_id: int | None = self._raw.eos_id
        self.added_tokens = {token_id: self._raw.id_to_piece(token_id) for token_id in sorted(self._raw.special_ids)}
        pieces = enumerate(self._raw.vocab())
        self.max_token_chars = max(len(piece) for token_id, piece in pieces if token_id not in self.added_tokens)
        self._always_written = frozenset(i for i, name in self.added_tokens.items() if name in _ALWAYS_WRITTEN)

    @classmethod
    def from_folder(cls, path: Path) -> "MistralTokenizer":
        """Loads the folder's newest tokenizer file.

        Raises:
            TokenizerLoadError: the file is missing or broken.
        """
        file = find_mistral_file(path)
        if file is None:
            raise TokenizerLoadError(f"no Mistral tokenizer in {path}: no tekken.json, no tokenizer.model")
        try:
            return cls(LoadedTokenizer.from_file(file))
        except Exception as err:  # the libraries raise any kind of error for a broken file
            reason = " ".join(str(err).split()) or type(err).__name__
            raise TokenizerLoadError(f"cannot load the tokenizer {file}: {reason}") from err

    @property
    def has_thinking(self) -> bool:
        """Whether the vocabulary has tokens that delimit reasoning."""
        return self.version >= 13 and self._raw.is_special(SpecialTokens.begin_think.value)

    @property
    def has_reasoning_effort(self) -> bool:
        """Whether a prompt can set the reasoning effort."""
        return self.version >= 15

    def encode_chat(self, request: ChatCompletionRequest[Any]) -> list[int]:
        """The prompt of a conversation; raises mistral-common's errors for an invalid one."""
        token_ids: list[int] = self.loaded.encode_chat_completion(request).tokens
        return token_ids

    def encode(self, text: str, *, add_special_tokens: bool, limit: int | None = None) -> list[int]:
        """As `Tokenizer.encode`.

        Raises:
            RequestError: tekken's regular expression failed, as it does for a million spaces in a row.
        """
        text.encode()
        try:
            token_ids = self._raw.encode(text, bos=add_special_tokens, eos=False)
        except ValueError as err:
            raise RequestError(f"the text cannot be tokenized: {err}") from err
        if limit is None or len(token_ids) <= limit:
            return token_ids
        num_first = int(add_special_tokens)
        return token_ids[:num_first] + token_ids[len(token_ids) - max(0, limit - num_first) :]

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return self.loop_decoder(skip_special_tokens=skip_special_tokens)(token_ids)

    def loop_decoder(self, *, skip_special_tokens: bool) -> Decode:
        return partial(self._decode, written=self._always_written if skip_special_tokens else self.added_tokens.keys())

    def token_bytes(self, token_id: int) -> bytes:
        if token_id in self.added_tokens:
            return self.added_tokens[token_id].encode()
        if token_id >= self.vocab_size:
            return b""
        if isinstance(self._raw, Tekkenizer):
            return self._raw.id_to_byte_piece(token_id, SpecialTokenPolicy.KEEP)
        piece = self._raw.id_to_piece(token_id)
        if match := _BYTE_PIECE.fullmatch(piece):
            return bytes.fromhex(match[1])
        return piece.replace("▁", " ").encode()

    def _decode(self, token_ids: Sequence[int], written: Set[int]) -> str:
        """Writes the special tokens in `written` by name and decodes each run of ordinary tokens separately.

        Ids without a token are skipped: a model's last layer may be larger than the vocabulary.
        """
        known = [i for i in token_ids if i < self.vocab_size and (i not in self.added_tokens or i in written)]
        texts: list[str] = []
        for is_special, run in groupby(known, self.added_tokens.__contains__):
            if is_special:
                texts.extend(self.added_tokens[token_id] for token_id in run)
            else:
                texts.append(self._raw.decode(list(run), SpecialTokenPolicy.IGNORE))
        return "".join(texts)
