"""LoRA adapters over HTTP, with a real server on a tiny model."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.e2e.server_process import ServerProcess
from tests.server.engine.lora.peft_adapters import adapted_outputs, save_adapter
from tests.support.http_client import Answer, ask
from tests.support.llamas import save_tiny_llama

_PROMPT = list(b"The weather in Paris")
_NUM_TOKENS = 12


class _Adapters:
    """A tiny model, its adapters, and a server for both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = save_tiny_llama(folder / "base")
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(self.base)
        self.paths = {name: save_adapter(self.model, folder / name, seed=i) for i, name in enumerate(("red", "blue"))}

    def serve(self, *arguments: str, wait: bool = True) -> ServerProcess:
        words = [str(self.base), "--served-model-name", "base", "other", "--dtype", "float32", "--enable-lora"]
        environment = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "OMP_NUM_THREADS": "1"}
        return ServerProcess([*words, *arguments], wait=wait, environment=environment)

    def expected(self, name: str | None) -> list[int]:
        return adapted_outputs(self.model, None if name is None else self.folder / name, [_PROMPT], _NUM_TOKENS)[0]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> _Adapters:
    return _Adapters(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def server(adapters: _Adapters) -> Iterator[ServerProcess]:
    module = {"name": "red", "path": str(adapters.paths["red"]), "base_model_name": "other"}
    options = ("--max-loras", "2", "--lora-adapter-root", str(adapters.folder))
    with adapters.serve("--lora-modules", json.dumps(module), *options) as running:
        yield running


def _complete(client: OpenAI, model: str) -> list[int]:
    answer: Any = client.completions.create(
        model=model,
        prompt=_PROMPT,
        max_tokens=_NUM_TOKENS,
        temperature=0,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    assert answer.model == model
    return list(answer.choices[0].token_ids)


def _load(server: ServerProcess, name: str, path: Path | str, **fields: Any) -> Answer:
    return ask(f"{server.url}/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)} | fields)


def _unload(server: ServerProcess, name: str) -> Answer:
    return ask(f"{server.url}/v1/unload_lora_adapter", {"lora_name": name})


def _error(answer: Answer) -> tuple[int, str, str]:
    error = answer.json["error"]
    assert error["code"] == answer.status
    return answer.status, error["type"], error["param"]


def test_requests_select_adapters_of_the_start_and_of_a_request(server, client, adapters):
    loaded = _load(server, "blue", "blue")
    assert (loaded.status, loaded.body) == (200, b"Success: LoRA adapter 'blue' added successfully.")
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda name: _complete(client, name), ["base", "red", "blue"] * 2))
    assert answers == [adapters.expected(name) for name in (None, "red", "blue")] * 2
    cards = [(card.id, card.root, card.parent) for card in client.models.list().data]  # type: ignore[attr-defined]
    assert cards == [
        ("base", str(adapters.base), None),
        ("other", str(adapters.base), None),
        ("red", str(adapters.paths["red"]), "other"),
        ("blue", "blue", "base"),
    ]
    assert client.models.retrieve("red").id == "red"
    assert _unload(server, "blue").body == b"Success: LoRA adapter 'blue' removed successfully."
    with pytest.raises(openai.NotFoundError, match="`blue` does not exist"):
        _complete(client, "blue")


def test_chat_and_streams_name_the_adapter(client):
    message = {"role": "user", "content": "Hello"}
    options: Any = {"model": "red", "messages": [message], "max_tokens": 4, "temperature": 0}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True))
    assert whole.model == "red"
    assert {chunk.model for chunk in chunks} == {"red"}
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    response = client.responses.create(model="red", input="Hello", max_output_tokens=4, temperature=0)
    assert (response.model, response.output_text) == ("red", whole.choices[0].message.content)
    base = client.chat.completions.create(**options | {"model": "base"})
    assert base.choices[0].message.content != whole.choices[0].message.content


def test_an_adapter_is_replaced_in_place(server, client, adapters):
    assert _load(server, "changing", "red").status == 200
    assert _complete(client, "changing") == adapters.expected("red")
    refused = _load(server, "changing", "blue")
    assert _error(refused) == (400, "InvalidUserInput", "lora_name")
    assert "already been loaded" in refused.json["error"]["message"]
    assert _load(server, "changing", "blue", load_inplace=True).status == 200
    assert _complete(client, "changing") == adapters.expected("blue")
    assert _unload(server, "changing").status == 200


def test_bad_requests_name_the_field(server, adapters, tmp_path):
    broken = adapters.folder / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text("this is not json")
    (adapters.folder / "link").symlink_to(tmp_path)
    cases = [
        (_load(server, "", "red"), (400, "InvalidUserInput", "lora_name")),
        (_load(server, "new", ""), (400, "InvalidUserInput", "lora_path")),
        (_load(server, "other", "red"), (400, "InvalidUserInput", "lora_name")),
        (_load(server, "new", "nowhere"), (404, "NotFoundError", "lora_path")),
        (_load(server, "new", broken), (400, "BadRequestError", "lora_path")),
        (_load(server, "new", "../"), (400, "InvalidUserInput", "lora_path")),
        (_load(server, "new", adapters.folder / "link"), (400, "InvalidUserInput", "lora_path")),
        (_load(server, "new", "a\0b"), (400, "BadRequestError", "lora_path")),
        (_unload(server, "unknown"), (404, "NotFoundError", "lora_name")),
        (_unload(server, ""), (400, "InvalidUserInput", "lora_name")),
        (ask(f"{server.url}/v1/load_lora_adapter", {"lora_name": "new"}), (400, "BadRequestError", "lora_path")),
    ]
    for answer, expected in cases:
        assert _error(answer) == expected, answer.body


def test_metrics_report_the_limit(server):
    assert server.metric("vllm:lora_requests_info", max_lora="2", running_lora_adapters="") > 0


def test_a_faulty_adapter_ends_the_start_with_its_name(adapters, tmp_path):
    folder = save_adapter(adapters.model, tmp_path, r=32)
    with adapters.serve("--lora-modules", f"large={folder}", wait=False) as server:
        assert server.process.wait(120) == 3
        assert f"--lora-modules large={folder}: " in server.log
        assert "LoRA rank 32 is greater than max_lora_rank 16 (--max-lora-rank)" in server.log
