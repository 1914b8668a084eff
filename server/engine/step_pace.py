"""Limits prompt tokens beside decoding sequences, by the measured times of steps.

A step with prompts delays the next token of every decoding sequence. What a prompt token costs depends on the
machine, the model and the context; it is therefore measured in each step.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from time import perf_counter

from server.engine.batch import Chunk

_MAX_SLOWDOWN = 2.0
"""A step with prompts may take this many times as long as one without."""
_MIN_PROMPT_TOKENS = 32
"""Prompts make at least this progress per step, however much it costs."""
_MIN_SHARE = 1 / 4
"""At least this share of the next prompt is computed per step: long prompts would wait too long."""
_NUM_MEASURED = 5
"""Each estimate is the median of this many steps: one slow step does not count."""


class StepPace:
    """Estimates what steps cost; used on the engine's thread."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._decode_s: dict[int, deque[float]] = {}
        """Times of steps without prompts, by the magnitude of the number of sequences."""
        self._prompt_token_s: deque[float] = deque(maxlen=_NUM_MEASURED)
        """Added time per prompt token, of steps that also decode."""

    def max_prompt_tokens(self, num_decodes: int, *, prompt_len: int) -> int | None:
        """How many prompt tokens a step may compute beside `num_decodes` sequences; None for any number.

        0 if no step of about so many sequences has been measured: this one is measured without prompts.

        Args:
            num_decodes: the sequences that the step decodes.
            prompt_len: tokens of the step's first prompt.
        """
        if not num_decodes:
            return None
        steps = self._decode_s.get(_magnitude(num_decodes))
        if steps is None:
            return 0
        fewest = max(_MIN_PROMPT_TOKENS, int(prompt_len * _MIN_SHARE))
        if not self._prompt_token_s:
            return fewest
        token_s = median(self._prompt_token_s)
        if token_s <= 0:
            return None
        return max(fewest, int((_MAX_SLOWDOWN - 1) * median(steps) / token_s))

    @contextmanager
    def measured(self, chunks: Sequence[Chunk]) -> Iterator[None]:
        """Measures a step, which computes these chunks."""
        num_decodes = sum(c.is_decode for c in chunks)
        num_prompt_tokens = sum(c.num_tokens for c in chunks) - num_decodes
        begin = self._clock()
        yield
        if num_decodes:
            self._record(num_decodes, num_prompt_tokens, self._clock() - begin)

    def _record(self, num_decodes: int, num_prompt_tokens: int, duration_s: float) -> None:
        steps = self._decode_s.get(_magnitude(num_decodes))
        if not num_prompt_tokens:
            self._decode_s.setdefault(_magnitude(num_decodes), deque(maxlen=_NUM_MEASURED)).append(duration_s)
        elif steps is not None:
            self._prompt_token_s.append((duration_s - median(steps)) / num_prompt_tokens)


def _magnitude(num_decodes: int) -> int:
    """Equal for numbers that differ by less than a factor of two."""
    return num_decodes.bit_length()
