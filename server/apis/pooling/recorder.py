"""Times one pooled prompt for the metrics."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from server.errors import EngineError
from server.metrics.server_metrics import EngineMetrics
from server.operation.request_context import RequestContext
from server.types import EngineOutput, FinishReason


class PromptRecorder:
    """Counts a prompt as vLLM does: its result counts as its first and last token."""

    def __init__(self, metrics: EngineMetrics, context: RequestContext, num_prompt_tokens: int) -> None:
        self._metrics = metrics
        self._context = context
        self._num_prompt_tokens = num_prompt_tokens
        self._reason: FinishReason = "abort"
        self._queue_s = self._prefill_s = self._end_s = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Wraps the prompt's run in the engine; records how it ended."""
        try:
            yield
        except EngineError:
            self._reason = "error"
            raise
        finally:
            self._metrics.finished[self._reason].inc()
            self._metrics.e2e_latency.observe(perf_counter() - self._context.arrival_s)
            self._metrics.request_prompt_tokens.observe(self._num_prompt_tokens)
            self._metrics.request_generation_tokens.observe(0)
            self._add_to_trace()

    def record(self, output: EngineOutput) -> None:
        """Records the result."""
        metrics = self._metrics
        self._reason = "stop"
        self._queue_s, self._prefill_s, self._end_s = output.queue_s, output.prefill_s, perf_counter()
        self._context.times.record_prefill(queue_s=output.queue_s, prefill_s=output.prefill_s)
        self._context.lease.finish_prefill(self._num_prompt_tokens)
        metrics.time_to_first_token.observe(perf_counter() - self._context.arrival_s)
        metrics.count_prompt(self._num_prompt_tokens)
        metrics.request_prefill_tokens.observe(self._num_prompt_tokens)
        metrics.queue_time.observe(output.queue_s)
        metrics.prefill_time.observe(output.prefill_s)
        metrics.inference_time.observe(output.prefill_s)
        metrics.decode_time.observe(0.0)

    def _add_to_trace(self) -> None:
        if self._context.trace is not None:
            self._context.trace.add_sequence(
                num_prompt_tokens=self._num_prompt_tokens,
                num_cached_tokens=0,
                num_tokens=0,
                queue_s=self._queue_s,
                prefill_s=self._prefill_s,
                first_s=self._end_s,
                last_s=self._end_s,
                reason=self._reason,
            )
