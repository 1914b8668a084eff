"""The helper process for templates in requests is stopped: one request fails, the next one succeeds."""

import os
import signal
from typing import Any

import jinja2
import psutil
import pytest

from server.renderers import template_process
from server.renderers.template_process import TemplateProcess
from tests.waiting import wait_until

pytestmark = pytest.mark.thorough

_TEMPLATE = "{{ messages[0]['content'] }}"


def _options(template: str) -> dict[str, object]:
    return {"chat_template": template, "add_generation_prompt": False, "continue_final_message": False}


@pytest.mark.parametrize("num_chars", [10, 1 << 20], ids=["fits the pipe", "more than the pipe holds"])
def test_stopped_template_process_fails_one_request_and_is_replaced(
    monkeypatch: pytest.MonkeyPatch, num_chars: int
) -> None:
    others = set(psutil.Process().children())
    process = TemplateProcess()
    conversation: list[Any] = [{"role": "user", "content": "x" * num_chars}]
    try:
        assert process.render(conversation, _options(_TEMPLATE)) == "x" * num_chars
        (child,) = set(psutil.Process().children()) - others
        os.kill(child.pid, signal.SIGSTOP)
        wait_until(lambda: child.status() == psutil.STATUS_STOPPED)
        with monkeypatch.context() as patch:
            patch.setattr(template_process, "_WALL_S", 1.0)
            with pytest.raises(jinja2.TemplateError, match="takes too long"):
                process.render(conversation, _options(_TEMPLATE))
        assert not child.is_running()
        assert process.render(conversation, _options(_TEMPLATE)) == "x" * num_chars
    finally:
        process.close()
