"""Reads the tokens of Mistral's tokenizer files, for the renderer and for grammars. Needs mistral-common."""

import re
from pathlib import Path
from typing import Any, Final

from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

_BYTE_PIECE: Final = re.compile(r"<0x([0-9A-F]{2})>")


def piece_bytes(raw: Any, token_id: int) -> bytes:
    """Returns the exact bytes of a token that is not special, in a tekken or SentencePiece tokenizer."""
    if isinstance(raw, Tekkenizer):
        return raw.id_to_byte_piece(token_id, SpecialTokenPolicy.KEEP)
    piece: str = raw.id_to_piece(token_id)
    if match := _BYTE_PIECE.fullmatch(piece):
        return bytes.fromhex(match[1])
    return piece.replace("▁", " ").encode()


class GrammarVocabulary:
    """A Mistral vocabulary with the attributes and the call that llguidance's TokenizerWrapper needs."""

    def __init__(self, file: Path) -> None:
        self._raw: Any = MistralTokenizer.from_file(file).instruct_tokenizer.tokenizer
        self.bos_token_id: int = self._raw.bos_id
        self.eos_token_id: int = self._raw.eos_id
        self.special_token_ids = sorted(self._raw.special_ids)
        special = set(self.special_token_ids)
        self.tokens = [
            self._raw.id_to_piece(i).encode() if i in special else piece_bytes(self._raw, i)
            for i in range(self._raw.n_words)
        ]

    def __call__(self, text: str) -> list[int]:
        """Returns the text's tokens, without special tokens.

        SentencePiece adds a space before a text. So the text is tokenized after a line break, and the tokens
        of the space and the line break are dropped.
        """
        begin = "" if isinstance(self._raw, Tekkenizer) else "\n"
        token_ids: list[int] = self._raw.encode(begin + text, bos=False, eos=False)
        return token_ids[2 * len(begin) :]
