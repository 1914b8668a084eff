"""Counts the requests of a batch."""

import time
from dataclasses import dataclass, field
from typing import Any, Literal

from startup.reports.timeline.live_line import draw_bar
from vllm_cli.batch.results import Result

Ending = Literal["completed", "incomplete", "interrupted"]


@dataclass
class Tally:
    """Requests of one run; `num_skipped` had a result before it began."""

    num_total: int
    num_skipped: int = 0
    num_failed_before: int = 0
    """Failed requests among the skipped ones."""
    num_succeeded: int = 0
    num_failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_retries: int = 0
    begin_s: float = field(default_factory=time.monotonic)
    """When the first request was sent."""

    def count(self, result: Result) -> None:
        """Counts one result."""
        if result.recorded.is_failed:
            self.num_failed += 1
        else:
            self.num_succeeded += 1
        self.prompt_tokens += _amount(result.usage, "prompt_tokens")
        self.completion_tokens += _amount(result.usage, "completion_tokens")

    @property
    def num_done(self) -> int:
        """Results of this run."""
        return self.num_succeeded + self.num_failed

    @property
    def num_left(self) -> int:
        return self.num_total - self.num_skipped - self.num_done

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.begin_s

    def describe(self) -> str:
        """How far the run is."""
        num_done = self.num_skipped + self.num_done
        failed = f", {self.num_failed} failed" if self.num_failed else ""
        rate = self.num_done / max(self.elapsed_s, 1e-9)
        eta = f", about {self.num_left / rate:.0f} s left" if rate else ""
        return f"{draw_bar(num_done / self.num_total)}  {num_done}/{self.num_total}{failed}, {rate:.1f}/s{eta}"

    def to_dict(self, ending: Ending) -> dict[str, Any]:
        """The summary that `--json` prints."""
        elapsed_s = max(self.elapsed_s, 1e-9)
        return {
            "status": ending,
            "total": self.num_total,
            "succeeded": self.num_succeeded,
            "failed": self.num_failed,
            "skipped": self.num_skipped,
            "skipped_failed": self.num_failed_before,
            "remaining": self.num_left,
            "retries": self.num_retries,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "elapsed_s": round(elapsed_s, 3),
            "requests_per_s": round(self.num_done / elapsed_s, 3),
            "completion_tokens_per_s": round(self.completion_tokens / elapsed_s, 3),
        }


def _amount(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else 0
