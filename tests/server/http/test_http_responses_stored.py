"""/v1/responses over HTTP: responses that are kept, continued, generated in the background and cancelled."""

import httpx
import openai
import pytest

from server.apis.responses import archive
from server.limits import LimitsConfig
from tests.server.http.conftest import PATIENT_S, TEXT

INPUT = "What is the capital of France?"


def create(client, **fields):
    return client.responses.create(model="smol", input=INPUT, **fields)


def send(server, method, path):
    """Sends a request about a kept response."""
    url = f"{server.url}/v1/responses/{path}"
    return httpx.request(method, url, json={}, trust_env=False, timeout=PATIENT_S)


def wait_for_status(client, response_id, status, wait_until):
    wait_until(lambda: client.responses.retrieve(response_id).status == status)


def test_a_response_is_retrieved_as_it_was(client):
    response = create(client)
    assert client.responses.retrieve(response.id) == response


def test_a_streamed_response_is_kept_too(client):
    *_, last = create(client, stream=True)
    assert client.responses.retrieve(last.response.id) == last.response


def test_a_response_is_not_kept_without_store(client):
    with pytest.raises(openai.NotFoundError, match="Response with id .* not found"):
        client.responses.retrieve(create(client, store=False).id)


def test_unknown_ids_are_not_found(server):
    for method, path in (("GET", ""), ("POST", "/cancel"), ("DELETE", ""), ("GET", "/input_items")):
        answer = send(server, method, f"resp_x{path}")
        assert answer.status_code == 404
        assert answer.json()["error"] == {
            "message": "Response with id 'resp_x' not found.",
            "type": "invalid_request_error",
            "param": "response_id",
            "code": 404,
        }


def test_input_tokens_is_not_a_route(server):
    refused = send(server, "POST", "input_tokens")
    assert (refused.status_code, set(refused.headers["allow"].split(", "))) == (405, {"GET", "HEAD", "DELETE"})


def test_a_deleted_response_is_gone(server, client):
    response_id = create(client).id
    deleted = send(server, "DELETE", response_id)
    assert deleted.json() == {"id": response_id, "object": "response", "deleted": True}
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response_id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(response_id)


def test_a_response_that_is_deleted_in_the_background_is_cancelled(client, engine, wait_until):
    engine.holds_after = 2
    response = create(client, background=True)
    client.responses.delete(response.id)
    assert engine.aborted
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_input_items_are_those_of_the_conversation_with_the_newest_first(client, engine):
    first = create(client)
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    given = [
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": [{"type": "input_text", "text": "Sure?"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        call,
        {"type": "function_call_output", "call_id": "c1", "output": "yes"},
    ]
    engine.holds_after = 2  # its items are known while it runs
    second = client.responses.create(model="smol", input=given, previous_response_id=first.id, background=True)
    page = client.responses.input_items.list(second.id)
    items = [item.to_dict() for item in page.data][::-1]
    assert len({item["id"] for item in items}) == 7
    assert (page.first_id, page.last_id, page.has_more) == (items[-1]["id"], items[0]["id"], False)
    texts = [(item["role"], item["content"][0]["type"], item["content"][0]["text"]) for item in items[:4]]
    assert texts == [
        ("user", "input_text", INPUT),
        ("assistant", "output_text", TEXT),
        ("assistant", "output_text", "Paris."),
        ("user", "input_text", "Sure?"),
    ]
    assert items[4].items() >= given[2].items()
    assert items[5].items() >= call.items()
    assert items[6].items() >= given[4].items()
    client.responses.cancel(second.id)
    assert client.responses.input_items.list(second.id).data == page.data
    client.responses.delete(first.id)
    assert len(client.responses.input_items.list(second.id).data) == 5


def test_input_items_come_in_pages(client, server):
    given = [{"role": "user", "content": str(number)} for number in range(5)]
    response = client.responses.create(model="smol", input=given)
    pages = client.responses.input_items.list(response.id, limit=2, order="asc")
    assert [item.content[0].text for item in pages] == list("01234")
    assert [page.has_more for page in pages.iter_pages()] == [True, True, False]
    for query in ("limit=0", "limit=101", "limit=x", "order=up", "after=msg_x"):
        refused = send(server, "GET", f"{response.id}/input_items?{query}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, query.partition("=")[0])


def test_two_responses_continue_the_same_one(client, engine, encode):
    first = create(client)
    engine.reply = encode("Yes.")
    second = create(client, previous_response_id=first.id)
    third = create(client, previous_response_id=first.id)
    assert second.output_text == third.output_text == "Yes."
    assert second.previous_response_id == first.id
    _, second_prompt, third_prompt = (prompt for prompt, _ in engine.requests.values())
    assert second_prompt == third_prompt


@pytest.mark.parametrize(
    "options", [{"enable_responses_store": False}, {"limits": LimitsConfig(max_stored_bytes=0)}], ids=["off", "empty"]
)
def test_without_a_store_nothing_is_kept_and_nothing_runs_in_the_background(serve, options):
    client = serve(**options).client()
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(create(client).id)
    with pytest.raises(openai.BadRequestError, match="does not support the background mode"):
        create(client, background=True)


def test_a_response_is_generated_in_the_background(client, engine, wait_until):
    engine.holds_after = 0
    response = create(client, background=True)
    assert (response.status, response.output) == ("queued", [])
    wait_until(lambda: engine.requests)
    assert client.responses.retrieve(response.id).status == "queued"
    with pytest.raises(openai.BadRequestError, match="not complete yet"):
        create(client, previous_response_id=response.id)
    engine.holds_after = None
    wait_for_status(client, response.id, "completed", wait_until)
    assert client.responses.retrieve(response.id).output_text == TEXT


def test_a_cancelled_response_stays_cancelled(client, engine):
    engine.holds_after = 2
    response = create(client, background=True)
    assert client.responses.cancel(response.id).status == "cancelled"
    assert engine.aborted
    assert client.responses.retrieve(response.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
        client.responses.cancel(response.id)


def test_a_complete_response_cannot_be_cancelled(client):
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
        client.responses.cancel(create(client).id)


def test_a_failed_response_says_why(client, engine, wait_until):
    engine.fails_after = 2
    response = create(client, background=True)
    wait_for_status(client, response.id, "failed", wait_until)
    assert "grammar became too large" in client.responses.retrieve(response.id).error.message


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


def test_only_streams_in_the_background_are_replayed(client):
    with pytest.raises(openai.BadRequestError, match="has no stream"):
        client.responses.retrieve(create(client).id, stream=True)


@pytest.mark.parametrize("query", ["stream=maybe", "stream=true&starting_after=x"])
def test_faults_of_the_query_name_the_parameter(server, query):
    error = server.get(f"/v1/responses/resp_x?{query}")
    assert error.status_code == 400
    assert error.json()["error"]["param"] in query


def test_a_response_in_the_background_counts_against_the_limits(serve, engine, wait_until):
    server = serve(limits=LimitsConfig(max_queued_requests=1))
    client = server.client()
    engine.holds_after = 2
    response = create(client, background=True)
    with pytest.raises(openai.InternalServerError, match="The server is busy"):
        create(client)
    engine.holds_after = None
    wait_for_status(client, response.id, "completed", wait_until)
    wait_until(lambda: server.parts.admission.num_sequences == 0)
    assert create(client).output_text == TEXT
