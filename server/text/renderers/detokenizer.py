"""Turns the tokens of one output into text as they arrive. Releases whole characters, up to a stop string.

`DecodeWindow` works with any `decode`, and takes 2 us per token. `tokenizers.decoders.DecodeStream` is not
used, because it decodes the whole prompt first, and exists only for fast tokenizers. It also raises an error
if later tokens change text that was already decoded, such as broken UTF-8 in byte-fallback vocabularies.
"""

from collections.abc import Callable, Iterable, Sequence
from os.path import commonprefix
from typing import NamedTuple

Decode = Callable[[Sequence[int]], str]

UNFINISHED = "\ufffd"
"""The character that a decoder writes for invalid bytes and for an incomplete character."""

MAX_HELD_TOKENS = 64
"""The most tokens that are held back. A character has at most four bytes, so more would not complete it."""

CHARACTER_CONTEXT = 4
"""How many tokens before a token may have begun its character."""

_CONTEXT_TOKENS = 6
"""How many tokens of the prompt are decoded with the first output tokens. Leading spaces depend on them."""
_MAX_CONTEXT_TOKENS = 256
"""The most tokens at a prompt's end that are searched for text. A prompt may end with many special tokens."""


_PIECE_TOKENS = 2048
"""How many tokens are decoded in one piece. Other threads wait up to 2 ms while a piece is decoded."""


MAX_STOP_CHARS = 1024
"""The most characters of a request's stop strings together. Scanning takes time for each character."""


def decode_in_pieces(decode: Decode, token_ids: Sequence[int]) -> str:
    """Decodes any number of tokens, in pieces that end at whole characters.

    Each piece is decoded together with the few tokens before it, because its text depends on them.
    """
    texts: list[str] = []
    begin = 0
    while begin < len(token_ids):
        end = _whole_end(decode, token_ids, begin + _PIECE_TOKENS)
        context = _tail(decode, token_ids[max(0, begin - _MAX_CONTEXT_TOKENS) : begin])
        shown = decode(context) if context else ""
        piece = token_ids[begin:end]
        text = decode([*context, *piece])
        texts.append(text[len(shown) :] if text.startswith(shown) else decode(piece))
        begin = end
    return "".join(texts)


def _whole_end(decode: Decode, token_ids: Sequence[int], end: int) -> int:
    """Returns the first index, `end` or later, that does not split a character."""
    last = min(end + MAX_HELD_TOKENS, len(token_ids))
    for index in range(end, last):
        text = decode(token_ids[index - _CONTEXT_TOKENS : index])
        if not text.endswith(UNFINISHED):
            return index
    return last


class TextDelta(NamedTuple):
    """Text that new tokens have added and that may be sent."""

    text: str
    stop: str | None = None
    """The stop string that ended the output. None if no stop string was found."""


class StopScanner:
    """Holds back text that may begin a stop string, and cuts the text at a complete stop string.

    One scanner serves one output, on one thread.
    """

    def __init__(self, stops: Iterable[str], include_in_output: bool = False) -> None:
        self._stops = [stop for stop in stops if stop]
        self._include = include_in_output
        self._begun = ""
        """The end of the text, which is held back because it may begin a stop string."""

    def scan(self, piece: str, can_stop: bool = True) -> TextDelta:
        """Scans the next piece. If `can_stop` is false, a stop string that ends in this piece is ignored."""
        num_begun = len(self._begun)
        start = num_begun if self._include else 0
        text = self._begun + piece
        ends: list[tuple[int, str]] = []
        for stop in self._stops if can_stop else ():
            end = _end_of(stop, text, num_begun)
            if end >= 0:
                ends.append((end, stop))
        if ends:
            end, stop = min(ends, key=lambda found: found[0])
            return TextDelta(text[start : end if self._include else end - len(stop)], stop)
        num_begun = max((_num_begun(stop, text) for stop in self._stops), default=0)
        self._begun = text[len(text) - num_begun :]
        return TextDelta(text[start : len(text) if self._include else len(text) - num_begun])

    def release(self) -> str:
        """Returns the held-back text at the end of the output."""
        return "" if self._include else self._begun


def _end_of(stop: str, text: str, num_scanned: int) -> int:
    """Returns the end of the first `stop` that ends after the scanned characters. -1 if there is none."""
    position = text.find(stop, max(0, num_scanned - len(stop) + 1))
    return position if position < 0 else position + len(stop)


def _num_begun(stop: str, text: str) -> int:
    """Returns how many characters at the text's end are the beginning of an incomplete stop string."""
    first = max(0, len(text) - len(stop) + 1)
    position = text.find(stop[0], first)
    while position >= 0 and not stop.startswith(text[position:]):
        position = text.find(stop[0], position + 1)
    return 0 if position < 0 else len(text) - position


class IncrementalDetokenizer:
    """Builds the text of one output. Every method runs on the event loop.

    Do not append the stop token or end-of-sequence token that ended the output, unless clients get its text.
    """

    def __init__(self, stream: "DecodeWindow", scanner: StopScanner | None = None, min_tokens: int = 0) -> None:
        self._stream = stream
        self._scanner = scanner
        self._min_tokens = min_tokens
        self._num_tokens = 0

    def append(self, token_ids: Sequence[int]) -> TextDelta:
        """Adds the next tokens. Ignores tokens after a stop string."""
        pieces: list[str] = []
        stop = None
        for token_id in token_ids:
            piece = self._stream.step(token_id)
            self._num_tokens += 1
            if self._scanner:
                piece, stop = self._scanner.scan(piece, can_stop=self._num_tokens > self._min_tokens)
            pieces.append(piece)
            if stop is not None:
                break
        return TextDelta("".join(pieces), stop)

    def finish(self) -> str:
        """Returns the text that was held back for stop strings. Called last, unless one ended the output.

        As in vLLM, the tokens of an incomplete character at the end of an output have no text.
        """
        return self._scanner.release() if self._scanner else ""


class PromptTail:
    """The end of a prompt, which is decoded together with each output. All choices of a prompt share it."""

    def __init__(self, token_ids: Sequence[int] = ()) -> None:
        self._token_ids = token_ids
        self._found: tuple[list[int], str] | None = None

    def find(self, decode: Decode) -> tuple[list[int], str]:
        """Returns the last tokens and their text, which begins with a whole character if possible."""
        if self._found is None:
            token_ids = _tail(decode, self._token_ids)
            self._found = token_ids, decode(token_ids) if token_ids else ""
        return self._found


class DecodeWindow:
    """Decodes only the tokens since the last whole character, together with a few before them.

    The text is the same as if prompt and output were decoded together and the prompt's text were cut off. The
    only exception is text directly before broken bytes. A byte-fallback decoder would then replace the
    last character, but released text cannot be replaced.
    """

    def __init__(self, decode: Decode, prompt: PromptTail) -> None:
        self._decode = decode
        self._context, self._shown = prompt.find(decode)
        self._pending: list[int] = []

    def step(self, token_id: int) -> str:
        """Returns the text that this token completes."""
        self._pending.append(token_id)
        text = self._decode(self._context + self._pending)
        if len(self._pending) < MAX_HELD_TOKENS and (text == self._shown or text.endswith(UNFINISHED)):
            return ""
        if text == self._shown:
            self._pending.clear()
            return ""
        new = self._unseen(text)
        self._context, self._pending = self._pending, []
        self._shown = self._decode(self._context)
        return new

    def _unseen(self, text: str) -> str:
        if text.startswith(self._shown):
            return text[len(self._shown) :]
        common = commonprefix([self._shown, text])
        if not self._shown[len(common) :].strip(UNFINISHED):
            return text[len(common) :]  # completes a character that the prompt has begun
        return self._decode(self._pending)


def complete_character(decode: Decode, token_id: int, before: Sequence[int]) -> str:
    """Returns the text of a token whose bytes end within a character, as in vLLM's log-probabilities.

    The token that completes a character has the whole character. The tokens before it have no text.

    Args:
        before: the tokens before this one. At most `CHARACTER_CONTEXT` of them are used.
    """
    for size in range(1, min(len(before), CHARACTER_CONTEXT) + 1):
        context = list(before[-size:])
        text = decode([*context, token_id])
        if text.endswith(UNFINISHED):
            continue
        while context and decode(context[-1:]).endswith(UNFINISHED):
            context.pop()
        shown = decode(context) if context else ""
        return text[len(commonprefix([shown, text])) :]
    return ""


def _tail(decode: Decode, token_ids: Sequence[int]) -> list[int]:
    """Returns enough of the last tokens that their text begins with a whole character, if possible."""
    size = _CONTEXT_TOKENS
    while size < min(len(token_ids), _MAX_CONTEXT_TOKENS):
        tail = list(token_ids[-size:])
        text = decode(tail)
        if text and not text.startswith(UNFINISHED):
            return tail
        size *= 2
    return list(token_ids[-_MAX_CONTEXT_TOKENS:])
