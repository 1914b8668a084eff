"""Tests of this folder run with the requests of completions and of chats."""

import pytest

from server.generation.completion_request import CompletionRequest
from server.generation.request import ChatRequest
from tests.server.generation.requests import Model


@pytest.fixture(params=[CompletionRequest, ChatRequest])
def model(request: pytest.FixtureRequest) -> Model:
    """Each kind of request."""
    return request.param  # type: ignore[no-any-return]
