"""What is known about this start, told alike by the responder, the HTTP server, the files and the log."""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from server.status_page.page import DATA_PATH, read_page
from server.types import EngineInfo
from startup.prefetch.report import PrefetchReport
from startup.probes.responder import Answer
from startup.timeline.history import EarlierStarts, read_history, remember_start
from startup.timeline.package_versions import installed_versions
from startup.timeline.progress import ProgressMeter
from startup.timeline.record import StartRecord
from startup.timeline.report import PageCacheFacts, StartFacts, StartReport, build_report, save_report
from startup.timeline.subject import StartSubject
from startup.timeline.timeline import PhaseTimeline
from startup.timeline.trace import save_trace
from startup.timeline.verdict import explain_slowness

logger = logging.getLogger(__name__)

_LIVE_PATHS = frozenset({"/livez"})


class StartState:
    """Implements `server.serving.start_view.StartView`; read from any thread, changed by the main one.

    The responder's process has a copy of its own, which follows this one's `snapshot`s.
    """

    def __init__(self, subject: StartSubject, timeline: PhaseTimeline, *, is_private: bool = False) -> None:
        """With `is_private`, clients are told no more than probes are: the responder knows no keys."""
        self._subject = subject
        self._is_private = is_private
        self._timeline = timeline
        self._earlier: EarlierStarts | None = None
        self._key = ""
        self._is_draining = False
        self.meter = ProgressMeter(timeline)
        self._facts = StartFacts(model=subject.model, start_method=subject.start_method, outcome="starting")

    def remember_past(self) -> None:
        """Looks earlier starts up, from which the time left is estimated."""
        versions = installed_versions(self._subject.packages)
        self._facts = replace(self._facts, versions=versions)
        self._look_up(self._subject.key(versions))
        self._timeline.on_change()

    def tell_detail(self, detail: str) -> None:
        """How far the present phase is, in words; empty when that is over."""
        self.meter.detail = detail
        self._timeline.on_change()

    def snapshot(self) -> bytes:
        """All that a copy in another process does not know by itself."""
        facts = {"versions": self._facts.versions, "outcome": self._facts.outcome, "error": self._facts.error}
        known = {
            "timeline": self._timeline.to_dict(),
            "facts": facts,
            "key": self._key,
            "detail": self.meter.detail,
        }
        return json.dumps(known).encode()

    def follow(self, snapshot: bytes) -> None:
        """Makes this a copy of the state that the snapshot was made of."""
        known = json.loads(snapshot)
        self._timeline.copy_from(known["timeline"])
        self._facts = replace(self._facts, **known["facts"])
        self.meter.detail = known["detail"]
        if known["key"] != self._key:
            self._look_up(known["key"])

    def _look_up(self, key: str) -> None:
        self._key = key
        self._earlier = read_history(key)
        self.meter.expect(self._earlier)

    @property
    def phase(self) -> str:
        """One word for what the API process is at."""
        match self._facts.outcome:
            case "starting":
                running = self._timeline.running
                return running.name if running else "starting"
            case "ready":
                return "draining" if self._is_draining else "serving"
            case outcome:
                return outcome

    def drain(self) -> None:
        """The server takes no more requests."""
        self._is_draining = True

    def progress(self) -> dict[str, Any]:
        return self.meter.read().to_dict()

    def report(self) -> bytes:
        return build_report(self._timeline, self._facts).to_json().encode()

    def elapsed_s(self) -> float:
        return self._timeline.elapsed_s

    def uptime_s(self) -> float:
        return self._timeline.offset_s(time.monotonic_ns())

    def phase_seconds(self) -> Mapping[str, float]:
        return {phase.key: phase.took_s for phase in build_report(self._timeline, self._facts).phases}

    def answer(self, path: str) -> Answer:
        """What the responder says before the HTTP server does."""
        if path in _LIVE_PATHS:
            return Answer(200)
        if not self._is_private and (told := self._answer_openly(path)) is not None:
            return told
        message = self._facts.error or "Loading model"
        error = {"code": 503, "message": message, "type": "unavailable_error"}
        body = {"error": error, "status": self._facts.outcome, **self.progress()}
        return Answer(503, json.dumps(body).encode(), retry_after_s=None if self._facts.error else 1)

    def _answer_openly(self, path: str) -> Answer | None:
        """The page and what it shows, timeline and metrics; None for other paths."""
        if path == "/":
            page = read_page()
            return Answer(200, page.body, "text/html; charset=utf-8", headers=page.headers)
        if path == DATA_PATH:
            return Answer(200, self._status())
        if path == "/startupz":
            return Answer(200, self.report())
        if path == "/metrics":
            return Answer(200, self._gauges().encode(), "text/plain; version=0.0.4; charset=utf-8")
        return None

    def _status(self) -> bytes:
        """What the page shows; the HTTP server says the same, and more, once it is there."""
        status = {
            "status": self._facts.outcome,
            "model": self._facts.model,
            "version": self._facts.versions.get("vllm-cli-server"),
            "error": self._facts.error,
            "progress": self.progress(),
            "start": json.loads(self.report()),
            "live": None,
        }
        return json.dumps(status).encode()

    def fail(self, reason: str) -> None:
        """The start has failed; probes are told why until the process ends."""
        self._facts = replace(self._facts, outcome="failed", error=reason)
        self._timeline.finish()
        self._save(build_report(self._timeline, self._facts))

    def finish(self, info: EngineInfo | None, prefetch: PrefetchReport | None, address: str) -> None:
        """The first token is there: logs the phases, writes the files that were asked for, remembers the start."""
        self._timeline.finish()
        if prefetch is not None:
            self._timeline.add("prefetch", prefetch.spans)
            logger.info("%s", prefetch)
        page_cache = _page_cache(prefetch)
        self._facts = replace(self._facts, outcome="ready", page_cache=page_cache)
        report = build_report(self._timeline, self._facts)
        if info is not None:
            _log_engine(info)
        logger.info("phases of this start:\n%s", report.table())
        slower = explain_slowness(report, self._earlier)
        if slower is not None:
            logger.info("%s", slower)
        logger.info("ready after %.2f s: %s", report.total_s, address)
        self._save(report)
        remember_start(StartRecord.from_report(report, self._key))

    def _save(self, report: StartReport) -> None:
        if self._subject.report_file is not None:
            save_report(report, self._subject.report_file)
        if self._subject.trace_file is not None:
            save_trace(report, self._subject.trace_file)

    def _gauges(self) -> str:
        labels = f'model_name="{_escape(self._facts.model)}",engine="0"'
        lines = [
            "# HELP vllm:engine_startup_time_seconds From the process's start to its first token.",
            "# TYPE vllm:engine_startup_time_seconds gauge",
            f"vllm:engine_startup_time_seconds{{{labels}}} {self.elapsed_s()}",
            "# HELP vllm_cli:startup_phase_seconds What the start waited for, by phase.",
            "# TYPE vllm_cli:startup_phase_seconds gauge",
            *(f'vllm_cli:startup_phase_seconds{{phase="{k}"}} {v}' for k, v in self.phase_seconds().items()),
        ]
        return "\n".join([*lines, ""])


def _page_cache(prefetch: PrefetchReport | None) -> PageCacheFacts | None:
    if prefetch is None or not prefetch.total_bytes:
        return None
    return PageCacheFacts(total_bytes=prefetch.total_bytes, resident_bytes=prefetch.resident_bytes)


def _log_engine(info: EngineInfo) -> None:
    if info.pooling is not None:
        logger.info(
            "%s in %s on %s: %d prompts at once of %d tokens, for %s",
            info.model_type,
            info.dtype,
            info.device,
            info.num_slots,
            info.max_model_len,
            ", ".join(info.pooling.supported_tasks),
        )
        return
    logger.info(
        "%s in %s on %s: %d sequences at once of %d tokens, KV cache of %d tokens (%.1f GiB), %s runner",
        info.model_type,
        info.dtype,
        info.device,
        info.num_slots,
        info.max_model_len,
        info.kv_cache_tokens,
        info.kv_cache_bytes / (1 << 30),
        info.runner,
    )


def _escape(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
