"""Keeps the state of one start (timeline, facts, progress), from which the responder makes its answers."""

import json
import logging
import pickle
import time
from collections.abc import Mapping
from dataclasses import replace
from threading import Lock
from typing import Any, Final

from base.lifecycle import START_INFO, START_PHASES, StartInfo
from base.machine.files import write_whole
from base.status_page.page import DATA_PATH, read_page
from server.terms.types import EngineInfo
from startup import start_origin
from startup.files.prefetch.messages import PrefetchReport
from startup.port.probe_http import LIVE_PATH, Answer
from startup.reports.timeline.history import StartRecord, StartSubject, installed_versions, read_history, record_start
from startup.reports.timeline.progress import ProgressMeter
from startup.reports.timeline.report import PageCacheFacts, StartFacts, StartReport, build_report
from startup.reports.timeline.timeline import PhaseTimeline

REPORT_PATH: Final = "/startupz"
_LONGEST_REASON: Final = 200

logger = logging.getLogger(__name__)


class StartState:
    """The state of one start (`base.lifecycle.StartView`). Only the main thread changes the state.

    Any thread may read the state. The responder's process has a copy, which messages (`to_message`) update.
    """

    def __init__(self, subject: StartSubject, timeline: PhaseTimeline) -> None:
        self.subject = subject
        self.facts = StartFacts(model=subject.model, start_method=subject.start_method, outcome="starting")
        self.history_key = ""
        """The key of comparable starts in the history. Empty until the history has been read."""
        self.meter = ProgressMeter(timeline)
        self._timeline = timeline
        self._is_draining = False
        self._changing = Lock()
        """Held while facts change, because two threads report what goes on after the start."""

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
        """Reads the times of earlier starts, from which the remaining time is estimated."""
        versions = installed_versions(self.subject.packages)
        self.facts = replace(self.facts, versions=versions)
        key = self.subject.history_key(versions)
        self._read_history(key if start_origin.warm is None else f"{key}-warm")  # not comparable with cold ones
        self._timeline.on_change()

    def set_detail(self, detail: str) -> None:
        """Sets a text about the current phase's progress. An empty text removes it."""
        self.meter.detail = detail
        self._timeline.on_change()

    def set_compiled_model(self, fields: Mapping[str, Any]) -> None:
        """Sets whether vLLM has loaded or compiled its model, and why."""
        self.facts = replace(self.facts, compiled_model=fields)

    def set_cuda_graphs(self, fields: Mapping[str, Any]) -> None:
        """Sets how many CUDA graphs vLLM has captured. Called on one thread, also after `finish`."""
        self._set(cuda_graphs=fields)

    def set_kernels(self, fields: Mapping[str, Any]) -> None:
        """Sets how many kernels of Triton the start has used, and how many its engine has compiled."""
        self.facts = replace(self.facts, kernels=fields)

    def set_sharing(self, fields: Mapping[str, Any]) -> None:
        """Sets what was added to the location for later starts. Called on one thread, also after `finish`."""
        self._set(sharing=fields)

    def finish(self, prefetch: PrefetchReport | None) -> None:
        """Called when the start has succeeded and the server is ready."""
        self._timeline.finish()
        if prefetch is not None:
            self._timeline.add("prefetch", prefetch.spans)
        self.facts = replace(self.facts, outcome="ready", page_cache=_page_cache(prefetch))

    def fail(self, reason: str) -> None:
        """Called when the start has failed. Probes report the reason until the process exits."""
        self.facts = replace(self.facts, outcome="failed", error=reason)
        self._timeline.finish()

    def drain(self) -> None:
        """Called when the server starts to reject new requests."""
        self._is_draining = True

    def to_message(self) -> bytes:
        """Encodes this state as a message. A copy in another process applies the message with `follow`."""
        return pickle.dumps((self._timeline.content, self.facts, self.history_key, self.meter.detail))

    def follow(self, message: bytes) -> None:
        """Makes this object a copy of the state that has made the message."""
        self._timeline.content, self.facts, key, self.meter.detail = pickle.loads(message)
        if key != self.history_key:
            self._read_history(key)

    def build_report(self) -> StartReport:
        """The report of the start so far, from the timeline and the facts about the start."""
        return build_report(self._timeline, self.facts)

    def progress(self) -> dict[str, Any]:
        return self.meter.read().to_dict()

    def report(self) -> bytes:
        return self.build_report().to_json().encode()

    def json_of(self, path: str) -> bytes | None:
        """The report, or the data of the status page. None for other paths."""
        if path == REPORT_PATH:
            return self.report()
        return json.dumps(self.status()).encode() if path == DATA_PATH else None

    def status(self) -> dict[str, Any]:
        """The data of the status page. It has the members of the HTTP server's data. `live` is null."""
        return {
            "status": "draining" if self.phase == "draining" else self.facts.outcome,
            "model": self.facts.model,
            "version": self.facts.versions.get("vllm-cli-server"),
            "error": self.facts.error,
            "progress": self.progress(),
            "start": json.loads(self.report()),
            "live": None,
        }

    def elapsed_s(self) -> float:
        return self._timeline.elapsed_s

    def uptime_s(self) -> float:
        return self._timeline.offset_s(time.monotonic_ns())

    def info(self) -> StartInfo:
        compiled = self.facts.compiled_model or {}
        mode, reason = ("warm", "") if start_origin.warm is not None else ("cold", start_origin.cold_reason)
        return StartInfo(mode, reason, compiled.get("state", ""), _why_compiled(compiled))

    def phase_seconds(self) -> Mapping[str, float]:
        """The seconds of each phase, and those of the whole start as `total`, because phases overlap."""
        report = self.build_report()
        return {phase.key: phase.took_s for phase in report.phases} | {"total": report.total_s}

    def _set(self, **facts: Any) -> None:
        with self._changing:
            self.facts = replace(self.facts, **facts)

    def _read_history(self, key: str) -> None:
        self.history_key = key
        self.meter.earlier = read_history(key)


def _why_compiled(compiled: Mapping[str, Any]) -> str:
    """Kind and name of the value that differs, or the beginning of the reason.

    Metrics and `ps` show this text. The values themselves are only in the log.
    """
    if difference := compiled.get("difference"):
        return f"{difference['kind']} {difference['name']}"
    return str(compiled.get("reason", ""))[:_LONGEST_REASON]


def _page_cache(prefetch: PrefetchReport | None) -> PageCacheFacts | None:
    if prefetch is None or prefetch.unknown_bytes or not prefetch.total_bytes:
        return None
    return PageCacheFacts(total_bytes=prefetch.total_bytes, resident_bytes=prefetch.resident_bytes)


class ProbeAnswers:
    """Chooses the answer to each path, in the responder's process, from its copy of the start's state."""

    def __init__(self, state: StartState, *, is_private: bool = False, has_page: bool = True) -> None:
        """With `is_private`, answers contain only facts for probes, because the responder has no API keys."""
        self._state = state
        self._is_private = is_private
        self._has_page = has_page

    def follow(self, message: bytes) -> None:
        self._state.follow(message)

    def answer(self, path: str) -> Answer:
        """Answers 200 for /livez and the public paths, and 503 with the progress for all other paths."""
        if path == LIVE_PATH:
            return Answer(200)
        if not self._is_private and (answer := self._answer_public(path)) is not None:
            return answer
        facts = self._state.facts
        error = {"code": 503, "message": facts.error or "Loading model", "type": "unavailable_error"}
        body = {"error": error, "status": facts.outcome, **self._state.progress()}
        return Answer(503, json.dumps(body).encode(), retry_after_s=None if facts.error else 1)

    def _answer_public(self, path: str) -> Answer | None:
        """The status page, its data, the start-up report or the metrics. None for other paths."""
        if path == "/" and self._has_page:
            page = read_page()
            return Answer(200, page.body, "text/html; charset=utf-8", headers=page.headers)
        if path == "/metrics":
            return Answer(200, _format_metrics(self._state).encode(), "text/plain; version=0.0.4; charset=utf-8")
        body = self._state.json_of(path)
        return None if body is None else Answer(200, body)


def _format_metrics(state: StartState) -> str:
    """The metrics of `collectors.start_families`, without the library used there, which is slow to import."""
    info = ",".join(f'{name}="{_escaped(value)}"' for name, value in state.info()._asdict().items())
    labels = f'model_name="{_escaped(state.facts.model)}",engine="0"'
    lines = [
        *_head("vllm:engine_startup_time_seconds", "From the process's start to its first token."),
        f"vllm:engine_startup_time_seconds{{{labels}}} {state.elapsed_s()}",
        *_head(*START_PHASES),
        *(f'{START_PHASES[0]}{{phase="{_escaped(key)}"}} {s}' for key, s in state.phase_seconds().items()),
        *_head(*START_INFO),
        f"{START_INFO[0]}{{{info}}} 1",
    ]
    return "\n".join([*lines, ""])


def _head(name: str, documentation: str) -> tuple[str, str]:
    return f"# HELP {name} {documentation}", f"# TYPE {name} gauge"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def save_ready_start(
    state: StartState, address: str, *, info: EngineInfo | None = None, prefetch: PrefetchReport | None = None
) -> None:
    """Logs the phases, writes the report file if one was requested, and adds the start to the history.

    `info` is None with vLLM. `prefetch` is None while the prefetch is still running.
    """
    report = state.build_report()
    if prefetch is not None:
        logger.info("%s", prefetch)
    if info is not None:
        _log_engine(info)
    if state.facts.compiled_model is not None:
        logger.info("compiled model: %s", state.facts.compiled_model["text"])
    logger.info("phases of this start:\n%s", report.table())
    logger.info("ready after %.2f s (%s): %s", report.total_s, state.info(), address)
    save_report(report, state.subject)
    record_start(state.history_key, StartRecord.from_report(report))


def save_report(report: StartReport, subject: StartSubject) -> None:
    """Writes the report file if one was requested. If this fails, logs a warning, and the start goes on."""
    if subject.report_file is not None:
        try:
            write_whole(subject.report_file, report.to_json())
        except OSError as err:
            logger.warning("the start-up report could not be written to %s: %s", subject.report_file, err.strerror)


def _log_engine(info: EngineInfo) -> None:
    model, length = f"{info.model_type} in {info.dtype} on {info.device}", info.max_model_len
    if info.pooling is not None:
        tasks = ", ".join(info.pooling.supported_tasks)
        logger.info("%s: %d prompts at once of %d tokens, for %s", model, info.num_slots, length, tasks)
        return
    cache = f"KV cache of {info.kv_cache_tokens} tokens ({info.kv_cache_bytes / (1 << 30):.1f} GiB)"
    logger.info(
        "%s: %d sequences at once of %d tokens, %s, %s runner", model, info.num_slots, length, cache, info.runner
    )
