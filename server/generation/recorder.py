"""Times one generated sequence for the metrics."""

from time import perf_counter
from typing import TYPE_CHECKING

from server.metrics.server_metrics import EngineMetrics
from server.operation.request_context import RequestContext
from server.types import EngineOutput, FinishReason

if TYPE_CHECKING:
    from server.tracing.request_trace import RequestTrace


class SequenceRecorder:
    """One per sequence; `finish` is called exactly once."""

    def __init__(
        self, metrics: EngineMetrics, *, context: RequestContext, num_prompt_tokens: int, max_tokens: int
    ) -> None:
        self._metrics = metrics
        self._arrival_s = context.arrival_s
        self._times = context.times
        self._lease = context.lease
        self._trace = context.trace
        self._num_prompt_tokens = num_prompt_tokens
        self._max_tokens = max_tokens
        self._first_s = 0.0
        self._last_s = 0.0
        self._num_cached_tokens = 0
        self._num_preemptions = 0
        self._queue_s = self._prefill_s = 0.0
        self.num_tokens = 0

    def record(self, output: EngineOutput) -> None:
        """Records an output of the engine."""
        if not (num_tokens := len(output.token_ids)):
            return
        now = perf_counter()
        if self.num_tokens:
            self._metrics.inter_token_latency.observe(now - self._last_s)
        else:
            self._first_s = now
            self._num_cached_tokens = output.num_cached_tokens
            self._queue_s, self._prefill_s = output.queue_s, output.prefill_s
            self._times.record_prefill(queue_s=output.queue_s, prefill_s=output.prefill_s)
            self._lease.finish_prefill(self._num_prompt_tokens)
            self._metrics.time_to_first_token.observe(now - self._arrival_s)
            self._metrics.count_prompt(self._num_prompt_tokens, num_cached=output.num_cached_tokens)
        self._last_s = now
        self.num_tokens += num_tokens
        self._metrics.count_generated(num_tokens)
        self._num_preemptions = output.num_preemptions

    def finish(self, reason: FinishReason) -> None:
        """Records the end of the sequence."""
        if self._trace is not None:
            self._describe(self._trace, reason)
        metrics = self._metrics
        metrics.finished[reason].inc()
        metrics.e2e_latency.observe(perf_counter() - self._arrival_s)
        metrics.request_prompt_tokens.observe(self._num_prompt_tokens)
        metrics.request_generation_tokens.observe(self.num_tokens)
        metrics.params_max_tokens.observe(self._max_tokens)
        metrics.num_preemptions.observe(self._num_preemptions)
        if self.num_tokens:
            metrics.request_prefill_tokens.observe(self._num_prompt_tokens - self._num_cached_tokens)
            decode_s = self._last_s - self._first_s
            self._times.record_decode(decode_s)
            metrics.queue_time.observe(self._queue_s)
            metrics.prefill_time.observe(self._prefill_s)
            metrics.decode_time.observe(decode_s)
            metrics.inference_time.observe(self._prefill_s + decode_s)
            metrics.time_per_output_token.observe(decode_s / (self.num_tokens - 1) if self.num_tokens > 1 else 0.0)

    def _describe(self, trace: "RequestTrace", reason: FinishReason) -> None:
        trace.add_sequence(
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._num_cached_tokens,
            num_tokens=self.num_tokens,
            queue_s=self._queue_s,
            prefill_s=self._prefill_s,
            first_s=self._first_s,
            last_s=self._last_s,
            reason=reason,
        )
