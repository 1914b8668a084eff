"""Turns the tokens of one output into text as they arrive, whole characters only.

`tokenizers.decoders.DecodeStream` is not used: it cannot release held-back text at the end of an output,
raises if the decoded text is not monotonic (broken UTF-8 in byte-fallback vocabularies), decodes the whole
prompt first, and exists for fast tokenizers only. The same window over any `decode` function costs 2 us per
token.
"""

from collections.abc import Callable, Sequence
from os.path import commonprefix

from server.renderers.stop_strings import StopScanner, TextDelta

Decode = Callable[[Sequence[int]], str]

UNFINISHED = "\ufffd"
"""A decoder's output for bytes that are not a character, or not a complete one yet."""

MAX_HELD_TOKENS = 64
"""Most tokens held back: a character has at most four bytes, so this many tokens cannot be one character."""

_CONTEXT_TOKENS = 6
"""Prompt tokens that are decoded with the first output tokens, because they determine a leading space."""
_MAX_CONTEXT_TOKENS = 256
"""Longer ends of prompts that decode to nothing, such as a row of special tokens, are not searched."""


class IncrementalDetokenizer:
    """Builds the text of one output; every method runs on the event loop.

    Do not append the stop or end-of-sequence token that ended the output, unless its text is wanted.
    """

    def __init__(self, stream: "DecodeWindow", scanner: StopScanner | None = None, min_tokens: int = 0) -> None:
        self._stream = stream
        self._scanner = scanner
        self._min_tokens = min_tokens
        self._num_tokens = 0

    def append(self, token_ids: Sequence[int]) -> TextDelta:
        """Adds the next tokens; tokens after a stop string are ignored."""
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
        """Returns the held-back text of an output that ended without a stop string; call it last."""
        held = self._scanner.release() if self._scanner else ""
        return held + self._stream.flush()


class PromptTail:
    """The end of a prompt that is decoded with an output; one per prompt, whatever its number of choices."""

    def __init__(self, token_ids: Sequence[int] = ()) -> None:
        self._token_ids = token_ids
        self._found: tuple[list[int], str] | None = None

    def find(self, decode: Decode) -> tuple[list[int], str]:
        """The last tokens, enough for some text that begins with a whole character, and this text."""
        if self._found is None:
            token_ids = _tail(decode, self._token_ids)
            self._found = token_ids, decode(token_ids) if token_ids else ""
        return self._found


class DecodeWindow:
    """Decodes only the tokens since the last whole character, together with a few before them.

    The text equals the full decode of prompt and output without the prompt's text. The exception: a
    byte-fallback decoder withdraws a character if broken bytes follow it, but released text cannot be
    withdrawn.
    """

    def __init__(self, decode: Decode, prompt: PromptTail) -> None:
        self._decode = decode
        self._context, self._shown = prompt.find(decode)
        self._pending: list[int] = []

    def step(self, token_id: int) -> str:
        """The text that this token completes."""
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

    def flush(self) -> str:
        """The text of what is still pending, with U+FFFD for an incomplete character."""
        new = self._unseen(self._decode(self._context + self._pending)) if self._pending else ""
        self._pending = []
        return new

    def _unseen(self, text: str) -> str:
        if text.startswith(self._shown):
            return text[len(self._shown) :]
        common = commonprefix([self._shown, text])
        if not self._shown[len(common) :].strip(UNFINISHED):
            return text[len(common) :]  # completes a character that the prompt left unfinished
        return self._decode(self._pending)


def _tail(decode: Decode, token_ids: Sequence[int]) -> list[int]:
    """The last tokens of the prompt, enough for some text that begins with a whole character."""
    size = _CONTEXT_TOKENS
    while size < min(len(token_ids), _MAX_CONTEXT_TOKENS):
        tail = list(token_ids[-size:])
        text = decode(tail)
        if text and not text.startswith(UNFINISHED):
            return tail
        size *= 2
    return list(token_ids[-_MAX_CONTEXT_TOKENS:])
