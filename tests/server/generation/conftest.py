"""Completion and chat requests of the fields that a test gives, tools for them, and cases of files."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.generation.generation_request import ChatRequest, CompletionRequest
from server.terms.http_body.request_body import RequestDecoder
from server.terms.limits import LimitsConfig
from tests.conversations.conversation import read_lines

Model = type[CompletionRequest] | type[ChatRequest]

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "get_time"}}
NAMED: dict[str, Any] = {"type": "function", "function": {"name": "get_weather"}}


def decode(model: Model, limits: LimitsConfig | None = None, **fields: Any) -> Any:
    """A request with these fields. The default prompt is `a`."""
    content = {"prompt": "a"} if model is CompletionRequest else {"messages": [{"role": "user", "content": "a"}]}
    return RequestDecoder(model, limits=limits).decode(msgspec.json.encode(content | fields))


def read_cases(name: str) -> list[Any]:
    """The lines of a file in this folder. A line is a case for a `chat`, for a `completion` or for `both`."""
    models: dict[str, list[Model]] = {"chat": [ChatRequest], "completion": [CompletionRequest]}
    models["both"] = models["completion"] + models["chat"]
    return [
        pytest.param(line, model, line[kind], id=f"{place} {model.__name__}")
        for place, line in read_lines(Path(__file__).with_name(name))
        for kind in models.keys() & line.keys()
        for model in models[kind]
    ]


@pytest.fixture(params=[CompletionRequest, ChatRequest])
def model(request: pytest.FixtureRequest) -> Model:
    """The class of each kind of request."""
    return request.param  # type: ignore[no-any-return]
