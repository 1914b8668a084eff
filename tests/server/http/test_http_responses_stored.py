"""/v1/responses over HTTP: responses that are kept, continued, generated in the background and cancelled."""

import httpx
import openai
import pytest

from server.limits import LimitsConfig
from tests.server.http.conftest import PATIENT_S, TEXT

INPUT = "What is the capital of France?"


def create(client, **fields):
    return client.responses.create(model="smol", input=INPUT, **fields)


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
    for method, path in (("get", ""), ("post", "/cancel")):
        url = f"/v1/responses/resp_x{path}"
        answer = server.get(url) if method == "get" else server.post(url, None)
        assert answer.status_code == 404
        assert answer.json()["error"] == {
            "message": "Response with id 'resp_x' not found.",
            "type": "invalid_request_error",
            "param": "response_id",
            "code": 404,
        }


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("DELETE", "resp_1", 405), ("GET", "resp_1/input_items", 404), ("POST", "input_tokens", 405)],
)
def test_routes_that_vllm_lacks_are_answered_as_by_vllm(server, method, path, status):
    url = f"{server.url}/v1/responses/{path}"
    assert httpx.request(method, url, json={}, trust_env=False, timeout=PATIENT_S).status_code == status


def test_two_responses_continue_the_same_one(client, engine, encode):
    first = create(client)
    engine.reply = encode("Yes.")
    second = create(client, previous_response_id=first.id)
    third = create(client, previous_response_id=first.id)
    assert second.output_text == third.output_text == "Yes."
    assert second.previous_response_id == first.id
    _, second_prompt, third_prompt = (prompt for prompt, _ in engine.requests.values())
    assert second_prompt == third_prompt


def test_the_oldest_response_is_dropped(serve):
    client = serve(limits=LimitsConfig(max_stored_responses=2)).client()
    ids = [create(client).id for _ in range(3)]
    with pytest.raises(openai.NotFoundError):
        create(client, previous_response_id=ids[0])
    for response_id in ids[1:]:
        assert client.responses.retrieve(response_id).id == response_id


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
