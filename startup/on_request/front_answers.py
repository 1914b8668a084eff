"""What the front itself answers: probes, status page, metrics and the list of models while no model runs.

No answer of the front starts the model.
"""

import json
import re
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from server.status_page.page import DATA_PATH
from startup.on_request.front_keys import FrontKeys
from startup.on_request.model_state import ModelState
from startup.probes import front_metrics
from startup.probes.probe_answers import ProbeAnswers
from startup.probes.probe_http import MODEL_STATE_HEADER, Answer
from startup.probes.serving_messages import LastAnswer
from startup.probes.start_state import StartState
from startup.timeline.subject import StartSubject
from startup.timeline.timeline import PhaseTimeline

_READINESS_PATHS: Final = ("/health", "/ping", "/readyz")
_STATUS_PATHS: Final = ("/", DATA_PATH, "/startupz", "/metrics")
_REQUEST: Final = re.compile(rb"(GET|HEAD) (/[^ ?]*)(?:\?([^ ]*))? HTTP/1\.[01]\r\n")
_ORIGIN: Final = re.compile(rb"\r\norigin:", re.IGNORECASE)


class Question(NamedTuple):
    """A request that the front may answer itself."""

    path: str
    query: str = ""
    is_head: bool = False
    is_cross_origin: bool = False
    """Whether a browser asks, for another site: the answer needs headers that only the server knows."""

    @classmethod
    def read(cls, received: bytes) -> "Question | None":
        """The request at the beginning of these bytes; None for another method."""
        match = _REQUEST.match(received)
        if match is None:
            return None
        path, query = (match[number] or b"" for number in (2, 3))
        is_cross_origin = _ORIGIN.search(received) is not None
        return cls(path.decode("latin-1"), query.decode("latin-1"), match[1] == b"HEAD", is_cross_origin)


class FrontAnswers:
    """Follows the starts of one model's servers, and their last answers."""

    def __init__(
        self,
        model: ModelState,
        model_name: str,
        memory: Callable[[], dict[str, int]],
        keys: FrontKeys,
        *,
        is_private: bool,
    ) -> None:
        """
        Args:
            model: its state.
            model_name: as clients name it.
            memory: the memory of the front and of its standby, in bytes.
            keys: with which requests start the model.
            is_private: whether all but probes needs a key.
        """
        self.model = model
        self._model_name = model_name
        self._memory = memory
        self._keys = keys
        self._is_private = is_private
        self.last: dict[str, LastAnswer] = {}
        """What the last server has answered, by path."""
        self._state: StartState
        self._start: ProbeAnswers
        self.begin_start()

    def begin_start(self) -> None:
        """Another server is started."""
        subject = StartSubject(model=self._model_name, start_method="", packages=(), key=lambda versions: "")
        self._state = StartState(subject, PhaseTimeline.from_process_start())
        self._start = ProbeAnswers(self._state, is_private=self._is_private)

    def follow(self, message: bytes) -> None:
        """The server's process has reported the state of its start."""
        self._start.follow(message)

    @property
    def activity(self) -> str:
        """What the server's process does, as text."""
        return self._state.meter.read().activity

    @property
    def failure(self) -> str:
        """The first line of why the start has failed, empty if it has not reported that."""
        lines = (self._state.facts.error or "").strip().splitlines()
        return lines[0][:500] if lines else ""

    def find(self, question: Question) -> Answer | None:
        """The answer; None if the server has to answer, for which it is started."""
        answer = self._find(question)
        if answer is None or not question.is_head:
            return answer
        return Answer(answer.status, b"", retry_after_s=answer.retry_after_s, headers=answer.headers)

    def find_rejection(self, received: bytes) -> Answer | None:
        """The answer to a request without a valid key that would start the model; None for any other."""
        return None if self.model.state in ("ready", "paused") else self._keys.find_rejection(received)

    def unavailable(self, message: str, *, status: int = 503) -> Answer:
        """The answer to a request that cannot be served."""
        error = {"code": status, "message": message, "type": "unavailable_error"}
        body = {"error": error, "status": self.model.state}
        return Answer(status, json.dumps(body).encode(), retry_after_s=self.model.retry_after_s(time.monotonic()))

    def _find(self, question: Question) -> Answer | None:
        path, model = question.path, self.model
        if path == "/readyz" and question.query == "model":
            return self._about_model()
        if model.state in ("ready", "paused"):
            return None
        if path == "/livez":
            return Answer(200)
        if path in _READINESS_PATHS:
            return self._about_readiness(path)
        if self._is_private:
            return None
        if not model.has_been_ready:
            return self._start.answer(path) if path in _STATUS_PATHS else None
        if question.is_cross_origin:
            return None
        return self._about_stopped(path)

    def _about_model(self) -> Answer:
        """Whether the model itself is ready."""
        state = self.model.state
        if state in ("ready", "paused"):
            return Answer(200, json.dumps({"status": "ready"}).encode())
        body: dict[str, Any] = {"status": state}
        if state == "starting":
            body |= self._state.progress()
        message = self.model.reason or f"The model is {body['status']}"
        error = {"code": 503, "message": message, "type": "unavailable_error"}
        return Answer(503, json.dumps({"error": error, **body}).encode())

    def _about_readiness(self, path: str) -> Answer:
        """Whether requests are answered: yes, once a server could be started, while the next can be."""
        model = self.model
        if not model.has_been_ready:
            return self._start.answer(path)
        if model.state == "failed" and not model.may_start(time.monotonic()):
            return self.unavailable(model.reason)
        return Answer(200, headers=((MODEL_STATE_HEADER, model.state),))

    def _about_stopped(self, path: str) -> Answer | None:
        if path == DATA_PATH:
            return Answer(200, self._status())
        last = self.last.get(path)
        if path == "/metrics" and last is not None:
            return Answer(200, self._metrics(last), last.content_type)
        if path in _STATUS_PATHS:
            return self._start.answer(path)
        return None if last is None else Answer(200, last.body, last.content_type)

    def _status(self) -> bytes:
        """The data of the status page; see `server.routes.status`."""
        model = self.model
        status: dict[str, Any] = json.loads(self._start.answer(DATA_PATH).body)
        if model.state != "starting":
            status["status"] = model.state
            status["error"] = model.reason or None
            status["stopped"] = {
                "for_s": round(time.monotonic() - model.since_s, 3),
                "num_idle_stops": model.num_idle_stops,
                "num_wakes": model.num_wakes,
                **self._memory(),
            }
        return json.dumps(status).encode()

    def _metrics(self, last: LastAnswer) -> bytes:
        model = self.model
        is_stopped = model.state != "starting"
        return front_metrics.write_stopped(
            last.body, is_stopped=is_stopped, num_idle_stops=model.num_idle_stops, num_wakes=model.num_wakes
        )
