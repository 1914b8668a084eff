"""A server whose answers in the chat a test writes, and what tests do with the page."""

import json
import threading
from collections.abc import Callable
from typing import Any

from tests.support.browser import PageServer, Tab
from tests.support.http_server import Request

MARKUP = "<img src=x onerror=document.title='hacked'>"
LAST = "$('talk').lastChild"
NUM_MESSAGES = "$('talk').children.length"
LIVE = (
    "uptime_s time_s num_running num_waiting kv_cache_usage prefix_cache_queries prompt_tokens generation_tokens "
    "loop_lag_p50_s loop_lag_p99_s loop_lag_max_s memory_bytes"
)
STATUS: dict[str, Any] = {
    "status": "ready", "model": "small", "version": "1", "needs_key": False, "modalities": ["text", "image"],
    "error": None, "progress": None, "live": dict.fromkeys(LIVE.split(), 1),
    "start": {"outcome": "ready", "total_s": 1.0, "phases": [], "spans": [], "marks": {}},
}  # fmt: skip


class WrittenAnswers(PageServer):
    """Answers a chat with the events of a test."""

    def __init__(self) -> None:
        super().__init__(STATUS)
        self.deltas: list[dict[str, Any]] = []
        self.is_broken_off = False
        self.refusal: Any = None
        self.context_length: int | None = None

    def answer_get(self, request: Request) -> Any:
        if request.path != "/v1/models" or self.context_length is None:
            return None
        return 200, {"data": [{"id": "small", "max_model_len": self.context_length}]}

    def answer_post(self, request: Request) -> Any:
        if self.refusal is not None:
            return self.refusal
        events = [": the model starts", *(f"data: {json.dumps({'choices': [{'delta': one}]})}" for one in self.deltas)]
        if not self.is_broken_off:
            events += ['data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}', "data: [DONE]"]
        return 200, "\n\n".join([*events, ""]).encode(), {"Content-Type": "text/event-stream"}


def never_end(handler: Any) -> None:
    """Sends the beginning of an answer, and waits until the browser closes the connection."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b'data: {"choices": [{"delta": {"content": "half"}}]}\n\n')
    handler.rfile.read(1)


def held_until(release: threading.Event) -> Callable[[Any], None]:
    """The beginning of an answer, and its rest once `release` is set."""

    def answer(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b'data: {"choices": [{"delta": {"content": "half"}}]}\n\n')
        handler.close_connection = True
        release.wait(120)
        handler.wfile.write(b'data: {"choices": [{"delta": {"content": " done"}}]}\n\n')
        usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}
        handler.wfile.write(f"data: {json.dumps(usage)}\n\ndata: [DONE]\n\n".encode())

    return answer


async def attach(browser: Tab, field: str, name: str, content: bytes) -> None:
    await browser.evaluate(
        f"{{ const data = new DataTransfer(), file = new File([new Uint8Array({list(content)})], '{name}', {{ type: "
        f"'{'image/png' if name.endswith('png') else ''}' }}); data.items.add(file); $('{field}').files = data.files; "
        f"$('{field}').dispatchEvent(new Event('change')) }}"
    )


def button(name: str, number: int) -> str:
    return f"[...document.querySelectorAll('.message')].at({number}).querySelector('.{name}')"
