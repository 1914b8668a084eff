"""/v1/responses with the helpers of the real `openai` client."""

from pydantic import BaseModel

from tests.server.http.conftest import TEXT

INPUT = "What is the capital of France?"


class City(BaseModel):
    name: str


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
