"""A Hugging Face tokenizer, as transformers loads it."""

from functools import partial
from pathlib import Path
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from server.renderers.detokenizer import Decode
from server.renderers.tokenizers.loading import load_tokenizer
from server.renderers.tokenizers.pair_encoding import Cut, EncodedPair, cut_text, encode_pair
from server.renderers.tokenizers.thread_tokenizers import ThreadTokenizers
from server.renderers.tokenizers.token_bytes import TokenBytes
from server.renderers.tokenizers.vocabulary import measure_vocabulary

_FILES = ("vocab_file", "merges_file", "tokenizer_file", "name_or_path")
"""Settings that would show the server's folders."""


class HfTokenizer:
    """Implements `Tokenizer`. Build it on the event loop's thread, which uses the loaded object itself."""

    def __init__(self, loaded: PreTrainedTokenizerBase) -> None:
        self.loaded = loaded
        self.added_tokens = {token_id: str(token) for token_id, token in loaded.added_tokens_decoder.items()}
        self.vocab_size, self.max_token_chars = measure_vocabulary(loaded)
        self.eos_token_id: int | None = loaded.eos_token_id
        self.pad_token_id: int | None = loaded.pad_token_id
        self._token_bytes = TokenBytes(loaded, self.loop_decoder(skip_special_tokens=False), self.added_tokens)
        self._thread_tokenizers = ThreadTokenizers(loaded)

    @classmethod
    def from_folder(cls, path: Path, *, trust_remote_code: bool = False) -> "HfTokenizer":
        """Loads the folder's tokenizer, which may import torch.

        Raises:
            TokenizerLoadError: the tokenizer is missing or broken.
        """
        return cls(load_tokenizer(path, trust_remote_code))

    @property
    def for_this_thread(self) -> PreTrainedTokenizerBase:
        """The calling thread's copy."""
        return self._thread_tokenizers.get()

    def encode(self, text: str, *, add_special_tokens: bool, limit: int | None = None) -> list[int]:
        return self._thread_tokenizers.encode(text, add_special_tokens=add_special_tokens, limit=limit)

    def encode_pair(
        self, text: str, pair: str | None, *, add_special_tokens: bool, cut: Cut | None = None
    ) -> EncodedPair:
        return encode_pair(self.for_this_thread, text, pair, add_special_tokens=add_special_tokens, cut=cut)

    def cut_text(self, text: str, num_tokens: int) -> str:
        return cut_text(self.for_this_thread, text, num_tokens)

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        text: str = self.for_this_thread.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def loop_decoder(self, *, skip_special_tokens: bool) -> Decode:
        """Bypasses transformers if the tokenizer is a fast one."""
        decode = getattr(self.loaded, "backend_tokenizer", self.loaded).decode
        return partial(decode, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        return self._token_bytes[token_id]

    def describe(self) -> dict[str, Any]:
        settings = {name: value for name, value in self.loaded.init_kwargs.items() if name not in _FILES}
        return {**_to_json(settings), "tokenizer_class": type(self.loaded).__name__}

    def pieces(self, token_ids: list[int]) -> list[str]:
        """Ids without a token, which a model's last layer may have, are empty texts."""
        pieces = self.for_this_thread.convert_ids_to_tokens(token_ids)
        return ["" if piece is None else piece for piece in pieces]

    def warm_up(self) -> None:
        self._thread_tokenizers.get()


def _to_json(value: Any) -> Any:
    """Settings as JSON: tokens as their text, other objects as Python shows them."""
    if isinstance(value, dict):
        return {str(name): _to_json(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(member) for member in value]
    return value if value is None or isinstance(value, str | int | float) else getattr(value, "content", str(value))
