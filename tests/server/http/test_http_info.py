"""Models, tokenization and the description of the API."""

import pytest


def test_served_names_are_listed(serve):
    body = serve(served_model_names=("big", "small")).get("/v1/models").json()
    assert body["object"] == "list"
    assert [card["id"] for card in body["data"]] == ["big", "small"]
    assert {card["root"] for card in body["data"]} == {"big"}
    assert body["data"][0]["max_model_len"] == 512


def test_one_name_is_described(serve):
    server = serve(served_model_names=("org/model",))
    assert server.get("/v1/models/org/model").json()["id"] == "org/model"


@pytest.mark.parametrize("path", ["/v1/models/other", "/v1/models/"])
def test_unknown_name_is_a_404(server, path):
    response = server.get(path)
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "NotFoundError"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [5]}),
    ],
)
def test_requests_for_other_models_are_rejected(server, path, body):
    response = server.post(path, body | {"model": "other"})
    assert response.status_code == 404
    assert response.json()["error"] == {
        "message": "The model `other` does not exist; served here: smol.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }


def test_responses_have_the_first_name(serve):
    server = serve(served_model_names=("big", "small"))
    assert server.complete(model="small").json()["model"] == "big"


def test_text_is_tokenized(server, encode):
    body = server.post("/tokenize", {"prompt": "Hello world"}).json()
    assert body == {"count": 2, "max_model_len": 512, "tokens": encode("Hello world"), "token_strs": None}


def test_conversation_is_tokenized_as_for_chat(server, engine):
    messages = [{"role": "user", "content": "Hello"}]
    server.chat(messages=messages)
    ((prompt, _),) = engine.requests.values()
    body = server.post("/tokenize", {"messages": messages}).json()
    assert (body["tokens"], body["token_strs"]) == (prompt, None)


def test_tokens_are_detokenized(server, encode):
    tokens = encode("Grüße, 世界!")
    assert server.post("/detokenize", {"tokens": tokens}).json() == {"prompt": "Grüße, 世界!"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/detokenize", {"tokens": [49152]}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": "text"}),
        ("/detokenize", {}),
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "return_token_strs": True}),
        ("/tokenize", {"messages": [{"role": "user", "content": 3}]}),
        ("/tokenize", {"messages": [{}], "continue_final_message": True, "add_generation_prompt": True}),
    ],
    ids=str,
)
def test_bad_tokenization_requests_are_rejected(server, path, body):
    response = server.post(path, body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "BadRequestError"


def test_version_is_reported(server):
    assert server.get("/version").json() == {"version": "1.2.3"}


def test_openapi_describes_every_route_and_field(server):
    document = server.get("/openapi.json").json()
    assert {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/v1/models"} <= set(
        document["paths"]
    )
    schemas = document["components"]["schemas"]
    assert schemas["CompletionRequest"]["properties"]["n"]["anyOf"][0] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 2147483647,
    }
    assert schemas["ChatRequest"]["required"] == ["messages"]


def test_openapi_names_the_routes_that_exist(server):
    document = server.get("/openapi.json").json()
    kept = server.post("/v1/responses", {"input": "Hello"}).json()
    for path, operations in document["paths"].items():
        response = server.get(path.replace("{model}", "smol").replace("{response_id}", kept["id"]))
        assert response.status_code == (405 if "post" in operations else 200), path
        if path != (absent := path.replace("{model}", "x").replace("{response_id}", "x")) and "get" in operations:
            assert str(server.get(absent).status_code) in operations["get"]["responses"]


def test_models_name_the_model_that_the_operator_gave(serve):
    (card,) = serve(model="/models/smol-135m").get("/v1/models").json()["data"]
    assert (card["id"], card["root"]) == ("smol", "/models/smol-135m")
