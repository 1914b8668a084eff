"""Replays the conversations of tests/conversations over HTTP, with an engine that replies as they say."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pprint import pformat
from typing import Any

import httpx
import msgspec
import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter, ValidationError

from base.lifecycle import Lifecycle
from server.terms.limits import LimitsConfig
from tests.conversations.conversation import (
    Conversation,
    Turn,
    conversations,
    differences,
    joined,
    read_stream,
    said,
    value_at,
)
from tests.server.engine.pooling.tiny_poolers import edit_config, save_pooler
from tests.server.http.conftest import LiveServer, ready_lifecycle
from tests.server.http.pooled_engine import serve_folder

ALL = sorted(conversations(), key=lambda one: (one.place.partition(":")[0], json.dumps(one.server)))
TOKENS_PER_STEP = (1, 4)
"""Each text is streamed once with each number, unless the conversation sets another one."""
EVENT: Any = TypeAdapter(ResponseStreamEvent)
"""The events that the real `openai` client knows."""


@pytest.fixture(scope="module")
def replaying(
    request: pytest.FixtureRequest, _start: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """The server of a conversation. Conversations share it if their settings are the same object."""
    settings = {name: tuple(v) if isinstance(v, list) else v for name, v in json.loads(request.param).items()}
    settings.pop("template", None)
    state = settings.pop("state", "ready")
    lifecycle = ready_lifecycle() if state == "ready" else Lifecycle()
    if state not in ("ready", "starting"):
        lifecycle.engine_ended(state)
    limits = LimitsConfig(**settings.pop("limits", {}))
    if task := settings.pop("pooler", None):
        folder = tmp_path_factory.mktemp(task)
        save_pooler(folder, "bert", task, **({"num_labels": 1} if task == "classify" else {}))
        edit_config(folder, matryoshka_dimensions=[8, 16])
        with serve_folder(folder) as server:
            yield server
        return
    with _start(lifecycle=lifecycle, limits=limits, **settings) as server:
        yield server


@pytest.mark.parametrize(
    ("replaying", "conversation"),
    [pytest.param(sys.intern(json.dumps(one.server)), one, id=f"{one.place}: {one.why}") for one in ALL],
    indirect=["replaying"],
    scope="module",
)
def test_a_conversation_goes_as_recorded(replaying, conversation, engine, encode, renderer, use_template, wait_until):
    if template := conversation.server.get("template"):
        use_template(template)
    Replay(replaying, encode, renderer, wait_until).run(conversation)


class Replay:
    """Sends the turns of a conversation. The engine keeps settings of a turn for the following turns."""

    def __init__(
        self, server: LiveServer, encode: Callable[[str], list[int]], renderer: Any, wait_until: Callable[[Any], None]
    ) -> None:
        self._server, self._engine, self._encode, self._renderer = server, server.engine, encode, renderer
        self._wait_until = wait_until
        self._kept: dict[str, Any] = {}
        self._tokens_per_step: tuple[int, ...] = TOKENS_PER_STEP

    def run(self, conversation: Conversation) -> None:
        for turn in conversation.turns:
            one = turn.filled(self._kept)
            if problems := self._replay(one):
                pytest.fail(
                    "\n".join([f"tests/conversations/{one.place}: {conversation.why}", *problems]), pytrace=False
                )

    def _replay(self, turn: Turn) -> list[str]:
        self._script(turn.line)
        problems: list[str] = []
        if turn.api and turn.body.get("stream") is True:
            return self._check_events(turn)
        if turn.line.get("until"):
            with suppress(AssertionError):  # the next answer says what is wrong
                self._wait_until(lambda: not self._check_whole(turn)[0])
        problems, answer = self._check_whole(turn)
        if not problems:
            self._kept |= {name: value_at(answer, path) for name, path in turn.line.get("keep", {}).items()}
            if turn.api and turn.line.get("streams", True):
                problems = self._check_streams(turn, answer)
        return problems

    def _script(self, line: dict[str, Any]) -> None:
        if "says" in line:
            says = line["says"]
            self._engine.reply = self._encode(says) if isinstance(says, str) else says
        if "tokens_per_step" in line.get("engine", {}):
            self._tokens_per_step = (line["engine"]["tokens_per_step"],)
        for name, value in line.get("engine", {}).items():
            info = msgspec.structs.replace(self._engine.info, **value) if name == "info" else value
            setattr(self._engine, name, info)

    def _ask(self, turn: Turn, **fields: Any) -> httpx.Response:
        self._engine.requests.clear()
        headers = {name: value.encode() for name, value in turn.line.get("sends", {}).items()}
        content: dict[str, Any] = {}
        if turn.body is not None:
            content = {"content": turn.body} if isinstance(turn.body, str) else {"json": turn.body | fields}
        return self._server.ask(turn.method, turn.path, headers=headers, **content)

    def _check_whole(self, turn: Turn) -> tuple[list[str], Any]:
        response = self._ask(turn)
        try:
            answer = response.json()
        except ValueError:
            answer = response.text
        return self._problems(turn, response, answer), answer

    def _problems(self, turn: Turn, response: httpx.Response, answer: Any) -> list[str]:
        expected = turn.line
        status = expected.get("status", 200)
        problems = [
            *differences("status", response.status_code, {"": status}),
            *differences("headers", dict(response.headers), expected.get("headers", {})),
            *differences("answer", answer, expected.get("answer", {})),
            *(differences("asked", self._asked(), expected["asked"]) if "asked" in expected else ()),
        ]
        if status >= 400 and "asked" not in expected and self._engine.requests:
            problems.append("  the engine was asked")
        calls = re.findall("chatcmpl-tool-[0-9a-f]+", response.text)
        if len(calls) != len(set(calls)):
            problems.append(f"  calls share an id: {calls}")
        if not expected.keys() & {"status", "headers", "answer", "events", "asked"}:
            problems.append("  nothing is expected")
        return (
            [*problems, "  the answer:", pformat(answer, width=110, compact=True, sort_dicts=False)] if problems else []
        )

    def _asked(self) -> list[dict[str, Any]]:
        """The requests that the engine has received, sorted by the number at the end of their ids."""
        by_number = sorted(self._engine.requests.items(), key=lambda item: int(item[0].rpartition("-")[2]))
        decode = self._renderer.tokenizer.decode
        return [
            {name: json.loads(msgspec.json.encode(getattr(params, name))) for name in params.__struct_fields__}
            | {"prompt": decode(tokens, skip_special_tokens=False), "tokens": tokens}
            for _, (tokens, params) in by_number
        ]

    def _check_streams(self, turn: Turn, answer: Any) -> list[str]:
        """Checks that streams have the content of the whole answer: its error, or texts, ends and usage."""
        for tokens_per_step in self._tokens_per_step:
            self._engine.tokens_per_step = tokens_per_step
            if problems := self._check_stream(turn, answer, tokens_per_step):
                return [f"  as a stream with {tokens_per_step} tokens a step:", *problems]
        self._engine.tokens_per_step = self._tokens_per_step[0]
        return self._check_events(turn) if "events" in turn.line else []

    def _check_stream(self, turn: Turn, answer: Any, tokens_per_step: int) -> list[str]:
        assert turn.api is not None
        counts = turn.api in ("chat", "completion") and turn.line.get("status", 200) == 200
        options = {"stream_options": {"include_usage": True}} if counts else {}
        response = self._ask(turn, stream=True, **options)
        if response.status_code != 200:
            return differences("error", response.json(), {"": answer})
        if turn.line.get("status", 200) != 200:
            return [] if "events" in turn.line else ["  the error is no answer, but an event:", response.text]
        stream = read_stream(response.text)
        try:
            found = joined(turn.api, stream)
            for event in stream.data if turn.api == "response" else ():
                EVENT.validate_python(event)
        except (AssertionError, LookupError, ValidationError) as err:
            return [f"  {err!r} in the events:", response.text]
        problems = differences("said", found, {"": said(turn.api, answer)})
        if counts and tokens_per_step == 1 and not problems:
            usage = stream.data[-1]["usage"]
            problems = differences("usage", usage, {name: answer["usage"][name] for name in usage})
        return problems

    def _check_events(self, turn: Turn) -> list[str]:
        response = self._ask(turn, stream=True)
        if problems := differences("status of the stream", response.status_code, {"": 200}):
            return [*problems, response.text]
        stream = read_stream(response.text)
        problems = differences("events", stream.data, turn.line["events"])
        problems += differences("headers of the stream", dict(response.headers), turn.line.get("headers", {}))
        return [*problems, "  the events:", *map(json.dumps, stream.data)] if problems else []
