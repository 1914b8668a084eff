"""Customizations of a SageMaker container, with AWS's package: handlers, middleware, sessions, adapters."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from server.app import kept_log_levels
from server.limits import LimitsConfig

with kept_log_levels():
    pytest.importorskip("model_hosting_container_standards.sagemaker")

    from model_hosting_container_standards.common.fastapi.middleware import middleware_registry
    from model_hosting_container_standards.common.fastapi.middleware.source.decorator_loader import decorator_loader
    from model_hosting_container_standards.common.handler import handler_registry
    from model_hosting_container_standards.sagemaker.sagemaker_loader import SageMakerFunctionLoader
    from model_hosting_container_standards.sagemaker.sessions.manager import init_session_manager_from_env

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
HANDLERS = """
from fastapi import Request

async def custom_sagemaker_ping_handler():
    return {"source": "script"}

async def custom_sagemaker_invocation_handler(request: Request):
    return {"predictions": [await request.json()]}
"""
MIDDLEWARE = """
from model_hosting_container_standards.common.fastapi.middleware import custom_middleware, output_formatter

@custom_middleware("throttle")
async def throttle(request, call_next):
    response = await call_next(request)
    response.headers["x-throttle"] = "applied"
    return response

@output_formatter
async def mark(response):
    response.headers["x-processed"] = "true"
    return response
"""


@pytest.fixture(autouse=True)
def _fresh_package():
    """The package keeps handlers and middleware per process."""
    handler_registry.clear()
    middleware_registry.clear_middlewares()
    decorator_loader.clear()
    SageMakerFunctionLoader._default_function_loader = None


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes the customer's script and names it in the environment."""

    def write(text: str) -> None:
        (tmp_path / "model.py").write_text(text)
        monkeypatch.setenv("SAGEMAKER_MODEL_PATH", str(tmp_path))
        monkeypatch.setenv("CUSTOM_SCRIPT_FILENAME", "model.py")

    return write


def test_handlers_of_the_customers_script_replace_the_servers(serve, script):
    script(HANDLERS)
    server = serve()
    assert server.get("/ping").json() == {"source": "script"}
    assert server.post("/invocations", CHAT).json() == {"predictions": [CHAT]}
    assert server.chat().json()["object"] == "chat.completion"


def test_middleware_of_the_customers_script_sees_all_routes(serve, script):
    script(MIDDLEWARE)
    server = serve()
    for response in (server.chat(), server.post("/invocations", CHAT), server.get("/ping")):
        assert response.status_code == 200
        assert (response.headers["x-throttle"], response.headers["x-processed"]) == ("applied", "true")
    assert server.stream_lines("/invocations", CHAT)[-1] == "[DONE]"


def test_sessions_are_opened_used_and_closed(serve, monkeypatch, tmp_path):
    monkeypatch.setenv("SAGEMAKER_ENABLE_STATEFUL_SESSIONS", "true")
    monkeypatch.setenv("SAGEMAKER_SESSIONS_PATH", str(tmp_path))
    init_session_manager_from_env()
    server = serve()
    opened = server.post("/invocations", {"requestType": "NEW_SESSION"})
    session_id = opened.headers["x-amzn-sagemaker-new-session-id"].split(";")[0]
    header = {"x-amzn-sagemaker-session-id": session_id}
    answer = server.post("/invocations", CHAT, headers=header)
    assert answer.json()["choices"][0]["message"]["content"] == " Paris, the city of light."
    closed = server.post("/invocations", {"requestType": "CLOSE"}, headers=header)
    assert closed.headers["x-amzn-sagemaker-closed-session-id"] == session_id
    assert server.post("/invocations", CHAT, headers=header).status_code == 400


def test_an_adapter_in_the_header_becomes_the_model(serve, monkeypatch):
    monkeypatch.setenv("SAGEMAKER_ENABLE_STATEFUL_SESSIONS", "true")
    response = serve().post("/invocations", CHAT, headers={"x-amzn-sagemaker-adapter-identifier": "missing"})
    assert (response.status_code, response.json()["error"]["param"]) == (404, "model")


def test_the_servers_answer_for_an_adapter_is_not_replaced(serve, monkeypatch, tmp_path):
    monkeypatch.setenv("SAGEMAKER_ENABLE_STATEFUL_SESSIONS", "true")
    server = serve(allow_runtime_lora_updating=True)
    taken = server.post("/adapters", {"name": server.get("/v1/models").json()["data"][0]["id"], "src": str(tmp_path)})
    assert (taken.status_code, taken.json()["error"]["type"]) == (400, "InvalidUserInput")
    absent = httpx.delete(f"{server.url}/adapters/x")
    assert (absent.status_code, absent.json()["error"]["type"]) == (404, "NotFoundError"), absent.text


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_huge_body_is_rejected_before_the_package_reads_it(serve, monkeypatch, is_chunked):
    monkeypatch.setenv("SAGEMAKER_ENABLE_STATEFUL_SESSIONS", "true")
    server = serve(limits=LimitsConfig(max_body_bytes=10_000))
    body = b'{"prompt": "' + b"a" * 20_000 + b'"}'
    content = iter([body[:15_000], body[15_000:]]) if is_chunked else body
    headers = {"content-type": "application/json"}
    response = httpx.post(server.url + "/invocations", content=content, headers=headers, trust_env=False, timeout=60)
    assert response.status_code == 413


@pytest.mark.thorough
def test_the_package_does_not_silence_the_servers_log():
    script = "import logging; logging.basicConfig(level=logging.INFO); from server.app import kept_log_levels\n"
    script += "with kept_log_levels(): import server.routes.sagemaker\nlogging.getLogger('server').info('heard')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "INFO:server:heard" in done.stderr
