"""Replays the conversations of tests/conversations/router. The models' servers answer with what they got."""

from typing import Any, Final

import pytest
from aiohttp import web

from router.model_entry import ForeignCommand, ModelEntry
from router.model_pool import ModelRefused
from tests.conversations.conversation import FOLDER, Conversation, differences, read_file
from tests.router.http.small_router import Handler, SmallRouter

ALL: Final = list(read_file(FOLDER / "router" / "answers.jsonl"))


@pytest.mark.parametrize("conversation", [pytest.param(one, id=f"{one.place}: {one.why}") for one in ALL])
async def test_a_conversation_with_the_router_goes_as_recorded(conversation: Conversation, router, ask):
    settings = _with_tuples(conversation.server)
    entries, runs = [_entry(each) for each in settings.pop("models")], settings.pop("runs", ())
    await router.serve(entries=entries, **settings)
    await _set_up(router, {"runs": runs})
    for turn in conversation.turns:
        await _set_up(router, turn.line.get("engine", {}))
        body = {"data": turn.body} if isinstance(turn.body, str) else {"json": turn.body}
        headers = turn.line.get("sends", {})
        answer = await ask(turn.method, turn.path, headers=headers, allow_redirects=False, **body)
        try:
            found = answer.json
        except ValueError:
            found = answer.body.decode()
        problems = [
            *differences("status", answer.status, {"": turn.line.get("status", 200)}),
            *differences("headers", answer.headers, turn.line.get("headers", {})),
            *differences("answer", found, turn.line.get("answer", {})),
        ]
        assert problems == [], f"tests/conversations/router/{turn.place}: {answer}"


def _entry(keys: Any) -> ModelEntry:
    """A model's entry. A text is the name of a model without settings."""
    if isinstance(keys, str):
        return ModelEntry(name=keys)
    foreign = {"foreign": ForeignCommand(**_with_tuples(keys["foreign"]))} if "foreign" in keys else {}
    return ModelEntry(**_with_tuples(keys) | foreign)


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


async def _set_up(router: SmallRouter, values: dict[str, Any]) -> None:
    """Sets attributes of the pool. `runs` has the names of the models that run."""
    for name, value in values.items():
        if name == "refused":
            await router.pool.refuse(ModelRefused(*value))
        elif name == "runs":
            router.pool.children.clear()
            for model in value:
                await router.start_model(model, _answering(model))
        else:
            setattr(router.pool, name, value)


def _answering(name: str) -> Handler:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        sent = {header.lower(): value for header, value in request.headers.items()}
        return web.json_response({"server": name, "target": request.raw_path, "sent": sent})

    return answer
