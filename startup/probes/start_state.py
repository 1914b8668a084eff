"""State of one start: timeline, facts and progress."""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from startup.prefetch.messages import PrefetchReport
from startup.timeline import start_origin
from startup.timeline.history import EarlierStarts, StartSubject, installed_versions, read_history
from startup.timeline.progress import ProgressMeter
from startup.timeline.report import PageCacheFacts, StartFacts, StartReport, build_report
from startup.timeline.timeline import PhaseTimeline


class StartState:
    """Implements `base.lifecycle.StartView`; changed by the main thread, read from any thread.

    The responder's process has a copy, which follows this one by its messages (`to_message`).
    """

    def __init__(self, subject: StartSubject, timeline: PhaseTimeline) -> None:
        self.subject = subject
        self.facts = StartFacts(model=subject.model, start_method=subject.start_method, outcome="starting")
        self.history_key = ""
        """Name of the comparable starts in the history; empty until the history has been read."""
        self.earlier: EarlierStarts | None = None
        self.meter = ProgressMeter(timeline)
        self._timeline = timeline
        self._is_draining = False

    @property
    def phase(self) -> str:
        """The API process's current phase in one word."""
        match self.facts.outcome:
            case "starting":
                running = self._timeline.running
                return running.name if running else "starting"
            case "ready":
                return "draining" if self._is_draining else "serving"
            case outcome:
                return outcome

    def load_history(self) -> None:
        """Reads earlier starts, from which the remaining time is estimated."""
        versions = installed_versions(self.subject.packages)
        self.facts = replace(self.facts, versions=versions)
        key = self.subject.key(versions)
        self._read_history(key if start_origin.warm is None else f"{key}-warm")  # not comparable with cold ones
        self._timeline.on_change()

    def set_detail(self, detail: str) -> None:
        """Progress of the current phase as text; empty once the phase has ended."""
        self.meter.detail = detail
        self._timeline.on_change()

    def finish(self, prefetch: PrefetchReport | None) -> None:
        """The start has succeeded: the server is ready."""
        self._timeline.finish()
        if prefetch is not None:
            self._timeline.add("prefetch", prefetch.spans)
        self.facts = replace(self.facts, outcome="ready", page_cache=_page_cache(prefetch))

    def fail(self, reason: str) -> None:
        """The start has failed; probes report the reason until the process exits."""
        self.facts = replace(self.facts, outcome="failed", error=reason)
        self._timeline.finish()

    def drain(self) -> None:
        """The server rejects new requests from now on."""
        self._is_draining = True

    def to_message(self) -> bytes:
        """Everything that a copy in another process needs to `follow` this state."""
        facts = {"versions": self.facts.versions, "outcome": self.facts.outcome, "error": self.facts.error}
        content = {
            "timeline": self._timeline.to_dict(),
            "facts": facts,
            "key": self.history_key,
            "detail": self.meter.detail,
        }
        return json.dumps(content).encode()

    def follow(self, message: bytes) -> None:
        """Makes this a copy of the state that sent the message."""
        content = json.loads(message)
        self._timeline.copy_from(content["timeline"])
        self.facts = replace(self.facts, **content["facts"])
        self.meter.detail = content["detail"]
        if content["key"] != self.history_key:
            self._read_history(content["key"])

    def build_report(self) -> StartReport:
        """The timeline so far with the facts."""
        return build_report(self._timeline, self.facts)

    def progress(self) -> dict[str, Any]:
        return self.meter.read().to_dict()

    def report(self) -> bytes:
        return self.build_report().to_json().encode()

    def elapsed_s(self) -> float:
        return self._timeline.elapsed_s

    def uptime_s(self) -> float:
        return self._timeline.offset_s(time.monotonic_ns())

    def phase_seconds(self) -> Mapping[str, float]:
        return {phase.key: phase.took_s for phase in self.build_report().phases}

    def _read_history(self, key: str) -> None:
        self.history_key = key
        self.earlier = read_history(key)
        self.meter.expect(self.earlier)


def _page_cache(prefetch: PrefetchReport | None) -> PageCacheFacts | None:
    if prefetch is None or not prefetch.total_bytes:
        return None
    return PageCacheFacts(total_bytes=prefetch.total_bytes, resident_bytes=prefetch.resident_bytes)
