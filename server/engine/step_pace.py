"""Limits the prompt tokens that a step computes beside decoding sequences, by the measured times of steps.

A step with prompts delays the next token of every decoding sequence. If more sequences wait than decode,
only `_MAX_STEP_S` limits the prompts. The cost of a prompt token depends on the machine, the model and the
context, so each step measures it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from time import perf_counter

from server.engine.sequence import Chunk

_MAX_SLOWDOWN = 2.0
"""A step with prompts may take up to so many times as long as a step without prompts."""
_MIN_PROMPT_TOKENS = 32
"""The fewest prompt tokens that a step computes, however much they cost."""
_MIN_SHARE = 1 / 4
"""A step computes at least this share of the waiting prompt tokens, so that the queue does not grow."""
_MAX_STEP_S = 20.0
"""The most seconds that a step may take for its prompts, because new and cancelled requests wait for the
end of the step. `_FEW_PROMPT_TOKENS` are always allowed."""
_FEW_PROMPT_TOKENS = 512
_LEAST_S = 1e-9
"""The smallest assumed cost of a prompt token in seconds, because measured costs may be negative."""
_NUM_MEASURED = 5
"""Each estimate is the median of this many steps, so that one slow step has no effect."""


class StepPace:
    """Estimates the time of steps, on the engine's thread."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._decode_s: dict[int, deque[float]] = {}
        """`_magnitude` of the number of decoding sequences -> the seconds of steps without prompts."""
        self._prompt_token_s: deque[float] = deque(maxlen=_NUM_MEASURED)
        """The seconds by which one prompt token made a step longer."""

    def max_prompt_tokens(self, num_decodes: int, prompt_lens: Sequence[int]) -> int:
        """Returns how many prompt tokens a step may compute beside `num_decodes` decoding sequences.

        Returns 0 if no step with about so many sequences has been measured, so that this step is measured
        without prompts. `prompt_lens` are the numbers of tokens of the prompts that could be computed.
        """
        most = max(_FEW_PROMPT_TOKENS, self._num_prompt_tokens_in(_MAX_STEP_S))
        if not num_decodes:
            return most
        steps = self._decode_s.get(_magnitude(num_decodes))
        if steps is None:
            return 0
        if len(prompt_lens) > num_decodes:  # more sequences wait than would be delayed
            return most
        fewest = max(_MIN_PROMPT_TOKENS, int(sum(prompt_lens) * _MIN_SHARE))
        return min(most, max(fewest, self._num_prompt_tokens_in((_MAX_SLOWDOWN - 1) * median(steps))))

    def _num_prompt_tokens_in(self, seconds: float) -> int:
        """Returns how many prompt tokens take `seconds`, or 0 if no prompt token has been measured."""
        if not self._prompt_token_s:
            return 0
        return int(seconds / max(median(self._prompt_token_s), _LEAST_S))

    @contextmanager
    def measured(self, chunks: Sequence[Chunk]) -> Iterator[None]:
        """Measures the block, which computes these chunks in one step."""
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
    """Returns the same number for all values between two successive powers of two."""
    return num_decodes.bit_length()
