"""/v1/responses with the real `openai` client: helpers, streams whose client leaves, a store that fails."""

import pytest
from pydantic import BaseModel

from server.apis.responses import archive
from tests.server.http.conftest import TEXT

INPUT = "What is the capital of France?"


class City(BaseModel):
    name: str


def create(client, **fields):
    return client.responses.create(model="smol", input=INPUT, **fields)


def test_client_parses_structured_output(client, engine, encode):
    engine.reply = encode('{"name": "Paris"}')
    response = client.responses.parse(model="smol", input=INPUT, text_format=City)
    assert response.output_parsed == City(name="Paris")
    ((_, params),) = engine.requests.values()
    assert params.guided.kind == "json_schema"


def test_clients_stream_helper_accepts_all_events(client):
    with client.responses.stream(model="smol", input=INPUT) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == TEXT
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == TEXT
    assert [event.response.status for event in events[:2]] == ["in_progress", "in_progress"]


@pytest.mark.parametrize("end", ["cancel", "delete"])
def test_a_response_in_the_background_ends_in_the_engine_too(client, engine, end):
    engine.holds_after = 2
    response = create(client, background=True)
    getattr(client.responses, end)(response.id)
    assert engine.aborted


def test_a_streamed_response_is_kept_too(client):
    *_, last = create(client, stream=True)
    assert client.responses.retrieve(last.response.id) == last.response


def test_a_stream_in_the_background_outlives_its_client(client, engine):
    engine.holds_after = 3
    with create(client, background=True, stream=True) as stream:
        response_id = next(iter(stream)).response.id
    assert client.responses.retrieve(response_id).status == "queued"
    follower = client.responses.retrieve(response_id, stream=True, starting_after=1)
    assert next(iter(follower)).type == "response.output_item.added"
    assert not engine.aborted
    engine.holds_after = None
    assert list(follower)[-1].response.output_text == TEXT
    assert create(client, previous_response_id=response_id).status == "completed"
    replayed = list(client.responses.retrieve(response_id, stream=True))
    assert [event.sequence_number for event in replayed] == list(range(len(replayed)))
    assert replayed[-1].response.output_text == TEXT
    assert list(client.responses.retrieve(response_id, stream=True, starting_after=len(replayed))) == []


def test_followers_of_a_cancelled_response_end(client, engine):
    engine.holds_after = 2
    stream = create(client, background=True, stream=True)
    response_id = next(iter(stream)).response.id
    client.responses.cancel(response_id)
    assert list(stream)[-1].response.status == "cancelled"


def fail(*_):
    raise OSError("no space left")


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_response_that_cannot_be_kept_is_answered_and_logged(server, client, monkeypatch, caplog, background, stream):
    monkeypatch.setattr(server.parts.response_store, "put", fail)
    response = create(client, background=background, stream=stream)
    if stream:
        assert list(response)[-1].response.output_text == TEXT
    elif not background:
        assert response.output_text == TEXT
    if stream or not background:
        assert "was not stored: OSError('no space left')" in caplog.text


def test_followers_of_a_response_that_cannot_be_encoded_get_a_last_event(client, monkeypatch, caplog):
    encode = archive.encode_named_event

    def encode_but_for_the_last(event):
        return fail() if event["type"] == "response.completed" else encode(event)

    monkeypatch.setattr(archive, "encode_named_event", encode_but_for_the_last)
    *events, last = create(client, background=True, stream=True)
    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert last.response.error.message == "Internal server error"
    assert last.sequence_number == len(events)
    assert "OSError: no space left" in caplog.text
