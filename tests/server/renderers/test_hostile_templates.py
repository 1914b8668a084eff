"""Templates from requests cannot escape the sandbox, and do not delay other requests."""

import asyncio
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.config import ModelFiles, RendererConfig
from server.errors import RequestError
from server.renderers.hf import HfRenderer
from server.renderers.prompts import ChatOptions
from tests.hostile.templates import ESCAPES, GREEDY_TEMPLATES
from tests.waiting import wait_until

USER = {"role": "user", "content": "Hello"}
TELLTALE = re.compile(r"<(class|function|module|method|built-in|code|frame|slot)|object at 0x|root:|co_consts =")
FINE = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}{{ tools|tojson }}"


@contextmanager
def _open_renderer(model_path: Path) -> Iterator[HfRenderer]:
    config = RendererConfig(trust_request_chat_template=True)
    with HfRenderer(ModelFiles(model_path, model_path), config) as renderer:
        renderer.warm_up()
        yield renderer


@pytest.fixture(scope="module")
def renderer(model_path: Path) -> Iterator[HfRenderer]:
    with _open_renderer(model_path) as renderer:
        yield renderer


@pytest.fixture
def own_renderer(model_path: Path) -> Iterator[HfRenderer]:
    """For tests in which the template process starts or exits."""
    with _open_renderer(model_path) as renderer:
        yield renderer


@pytest.fixture(scope="module", autouse=True)
def warm(renderer: HfRenderer) -> None:
    """Starts the template process before the check for leaked processes."""
    render(renderer, FINE)


def render(renderer: HfRenderer, template: str, **options: Any) -> str:
    text = renderer.render_chat([USER], ChatOptions(chat_template=template, **options)).text
    assert text is not None
    return text


def test_a_harmless_template_renders_as_the_operators_does(
    renderer: HfRenderer, build_inline: Callable[..., HfRenderer], model_path: Path
) -> None:
    tools = [{"type": "function", "function": {"name": "größe", "parameters": {}}}]
    operators = build_inline(model_path, chat_template=FINE).render_chat([USER], ChatOptions(tools=tools))
    assert render(renderer, FINE, tools=tools) == operators.text
    assert render(renderer, "{{ messages[0].content }}", add_generation_prompt=False, continue_final_message=True)


def test_a_request_template_that_expects_parts_gets_parts(renderer: HfRenderer) -> None:
    template = "{% for m in messages %}{% for c in m.content %}[{{ c.text }}]{% endfor %}{% endfor %}"
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert renderer.render_chat(messages, ChatOptions(chat_template=template)).text == "[a][b]"


@pytest.mark.parametrize("template", ESCAPES.values(), ids=ESCAPES)
def test_no_template_escapes_the_sandbox(renderer: HfRenderer, tmp_path: Path, template: str) -> None:
    _check_harmless(lambda: render(renderer, template.replace("PATH", str(tmp_path / "escaped"))))
    assert not (tmp_path / "escaped").exists()


@pytest.mark.thorough
@pytest.mark.parametrize("template", ESCAPES.values(), ids=ESCAPES)
def test_the_operators_template_does_not_escape_the_sandbox(
    build_inline: Callable[..., HfRenderer], model_path: Path, tmp_path: Path, template: str
) -> None:
    renderer = build_inline(model_path, chat_template=template.replace("PATH", str(tmp_path / "escaped")))
    _check_harmless(lambda: str(renderer.render_chat([USER], ChatOptions()).text))
    assert not (tmp_path / "escaped").exists()


@pytest.mark.thorough
async def test_greedy_templates_are_stopped_while_the_loop_and_other_requests_run(own_renderer: HfRenderer) -> None:
    for name, template in GREEDY_TEMPLATES.items():
        greedy = asyncio.create_task(own_renderer.render_chat_async([USER], ChatOptions(chat_template=template)))
        while not greedy.done():  # the event loop keeps running
            await asyncio.sleep(0.01)
        error = greedy.exception()
        assert isinstance(error, RequestError), name
        assert error.status == 400, name
        assert len(error.message) < 1000, name
    assert render(own_renderer, "fine again") == "fine again"


def test_the_process_has_no_secrets_and_few_permissions(
    own_renderer: HfRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sesame")
    monkeypatch.setenv("HF_TOKEN", "sesame")
    process = _process_of(own_renderer)
    assert "VLLM_API_KEY" not in process.environ()
    assert "HF_TOKEN" not in process.environ()
    for limit in (psutil.RLIMIT_FSIZE, psutil.RLIMIT_NPROC, psutil.RLIMIT_CORE):
        assert process.rlimit(limit) == (0, 0)


def test_a_waiting_process_has_no_limit_of_processor_time(renderer: HfRenderer) -> None:
    """Otherwise an earlier template's time could kill it while it reads a request."""
    soft, hard = _process_of(renderer).rlimit(psutil.RLIMIT_CPU)
    assert soft == hard


def test_a_process_that_was_killed_is_replaced(own_renderer: HfRenderer) -> None:
    first = _process_of(own_renderer)
    first.send_signal(signal.SIGKILL)
    wait_until(lambda: first.status() == psutil.STATUS_ZOMBIE)
    with pytest.raises(RequestError, match="exit code -9"):
        render(own_renderer, "x")
    assert render(own_renderer, "x") == "x"
    assert _process_of(own_renderer).pid != first.pid


def _check_harmless(render: Callable[[], str]) -> None:
    """Checks that the template failed, or that its text reveals nothing about the interpreter."""
    try:
        text = render()
    except RequestError as err:
        assert err.status == 400
        text = err.message
    assert not TELLTALE.search(text), text


def _process_of(renderer: HfRenderer) -> psutil.Process:
    render(renderer, "x")
    process = renderer._template_process._process
    assert process is not None
    return psutil.Process(process.pid)
