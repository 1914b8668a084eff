"""Limits prompt tokens beside decoding sequences, by the measured times of steps.

A step with prompts delays the next token of every decoding sequence. If more sequences are waiting than
decoding, all waiting prompts are computed at once. What a prompt token costs depends on the machine, the
model and the context, and is therefore measured in each step.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from time import perf_counter

from server.engine.sequence import Chunk

_MAX_SLOWDOWN = 2.0
"""A step with prompts may take this many times as long as one without."""
_MIN_PROMPT_TOKENS = 32
"""Prompts make at least this progress per step, however much it costs."""
_MIN_SHARE = 1 / 4
"""At least this share of the waiting prompts is computed per step; with less, the queue would grow."""
_MAX_STEP_S = 20.0
"""Longest time of a step's prompts beyond the first `_FEW_PROMPT_TOKENS`, because new and cancelled requests
wait for its end."""
_FEW_PROMPT_TOKENS = 512
_LEAST_S = 1e-9
"""The least cost of a prompt token, as measured costs may be negative."""
_NUM_MEASURED = 5
"""Each estimate is the median of this many steps, so that one slow step has no effect."""


class StepPace:
    """Estimates the time of steps; used on the engine's thread."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._decode_s: dict[int, deque[float]] = {}
        """Times of steps without prompts, by the magnitude of the number of sequences."""
        self._prompt_token_s: deque[float] = deque(maxlen=_NUM_MEASURED)
        """Added time per prompt token."""

    def max_prompt_tokens(self, num_decodes: int, prompt_lens: Sequence[int]) -> int:
        """How many prompt tokens a step may compute beside `num_decodes` sequences.

        0 if no step of about so many sequences has been measured: this one is measured without prompts.

        Args:
            num_decodes: the sequences that the step decodes.
            prompt_lens: tokens of each prompt that could be computed.
        """
        most = max(_FEW_PROMPT_TOKENS, self._num_prompt_tokens_in(_MAX_STEP_S))
        if not num_decodes:
            return most
        steps = self._decode_s.get(_magnitude(num_decodes))
        if steps is None:
            return 0
        if len(prompt_lens) > num_decodes:  # more sequences wait than are delayed
            return most
        fewest = max(_MIN_PROMPT_TOKENS, int(sum(prompt_lens) * _MIN_SHARE))
        return min(most, max(fewest, self._num_prompt_tokens_in((_MAX_SLOWDOWN - 1) * median(steps))))

    def _num_prompt_tokens_in(self, seconds: float) -> int:
        """How many prompt tokens take this time; 0 if none has been measured."""
        if not self._prompt_token_s:
            return 0
        return int(seconds / max(median(self._prompt_token_s), _LEAST_S))

    @contextmanager
    def measured(self, chunks: Sequence[Chunk]) -> Iterator[None]:
        """Measures a step, which computes these chunks."""
        num_decodes = sum(c.is_decode for c in chunks)
        num_prompt_tokens = sum(c.num_tokens for c in chunks) - num_decodes
        begin = self._clock()
        yield
        self._record(num_decodes, num_prompt_tokens, self._clock() - begin)

    def _record(self, num_decodes: int, num_prompt_tokens: int, duration_s: float) -> None:
        magnitude = _magnitude(max(1, num_decodes))  # without sequences, a step still reads all weights
        steps = self._decode_s.get(magnitude)
        if not num_prompt_tokens:
            self._decode_s.setdefault(magnitude, deque(maxlen=_NUM_MEASURED)).append(duration_s)
        elif steps is not None:
            self._prompt_token_s.append((duration_s - median(steps)) / num_prompt_tokens)


def _magnitude(num_decodes: int) -> int:
    """Equal for numbers that differ by less than a factor of two."""
    return num_decodes.bit_length()
