"""The responder's answer to each path until the HTTP server accepts."""

import json

from base.status_page.page import DATA_PATH, read_page
from startup.probes.probe_http import Answer
from startup.probes.start_state import StartState

_LIVE_PATH = "/livez"


class ProbeAnswers:
    """Implements `startup.probes.probe_http.Answers` in the responder's process, on its copy of the state."""

    def __init__(self, state: StartState, *, is_private: bool = False) -> None:
        """With `is_private`, answers contain only what probes need: the responder has no API keys."""
        self._state = state
        self._is_private = is_private

    def follow(self, message: bytes) -> None:
        """Updates the copy of the state."""
        self._state.follow(message)

    def answer(self, path: str) -> Answer:
        """200 for /livez and the public paths, 503 with the progress for all others."""
        if path == _LIVE_PATH:
            return Answer(200)
        if not self._is_private and (answer := self._answer_public(path)) is not None:
            return answer
        facts = self._state.facts
        error = {"code": 503, "message": facts.error or "Loading model", "type": "unavailable_error"}
        body = {"error": error, "status": facts.outcome, **self._state.progress()}
        return Answer(503, json.dumps(body).encode(), retry_after_s=None if facts.error else 1)

    def _answer_public(self, path: str) -> Answer | None:
        """Status page with its data, timeline and metrics; None for other paths."""
        if path == "/":
            page = read_page()
            return Answer(200, page.body, "text/html; charset=utf-8", headers=page.headers)
        if path == DATA_PATH:
            return Answer(200, _format_status(self._state))
        if path == "/startupz":
            return Answer(200, self._state.report())
        if path == "/metrics":
            return Answer(200, _format_metrics(self._state).encode(), "text/plain; version=0.0.4; charset=utf-8")
        return None


def _format_status(state: StartState) -> bytes:
    """The data of the status page: the members that the HTTP server sends, `live` being null."""
    status = {
        "status": state.facts.outcome,
        "model": state.facts.model,
        "version": state.facts.versions.get("vllm-cli-server"),
        "error": state.facts.error,
        "progress": state.progress(),
        "start": json.loads(state.report()),
        "live": None,
    }
    return json.dumps(status).encode()


def _format_metrics(state: StartState) -> str:
    """The families of `server.metrics.collectors.start_families`; prometheus_client is slow to import."""
    model_name = state.facts.model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    lines = [
        "# HELP vllm:engine_startup_time_seconds From the process's start to its first token.",
        "# TYPE vllm:engine_startup_time_seconds gauge",
        f'vllm:engine_startup_time_seconds{{model_name="{model_name}",engine="0"}} {state.elapsed_s()}',
        "# HELP vllm_cli:startup_phase_seconds What the start waited for, by phase.",
        "# TYPE vllm_cli:startup_phase_seconds gauge",
        *(f'vllm_cli:startup_phase_seconds{{phase="{key}"}} {s}' for key, s in state.phase_seconds().items()),
    ]
    return "\n".join([*lines, ""])
