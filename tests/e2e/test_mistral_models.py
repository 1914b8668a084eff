"""The embedded engine serves models that have only Mistral's own tokenizer. Caches can be reset."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mistral_common
import pytest
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from openai import OpenAI

from tests.e2e.server_process import ServerProcess
from tests.server.text.renderers.conftest import small_tekken
from tests.support.llamas import save_llama_without_tokenizer

_DATA = Path(mistral_common.__file__).parent / "data"
_MESSAGES: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Où est Größe? 😀"}]
_EXACT: dict[str, Any] = {
    "model": "tiny",
    "temperature": 0,
    "max_tokens": 12,
    "extra_body": {"ignore_eos": True, "return_token_ids": True},
}


class Model(NamedTuple):
    """A model, and the tokenizer that mistral-common itself makes from the model's file."""

    folder: Path
    tokenizer: Any


def _tekken(folder: Path) -> Model:
    content = small_tekken(json.loads((_DATA / "tekken_240911.json").read_bytes()), "v11")
    (folder / "tekken.json").write_text(json.dumps(content))
    save_llama_without_tokenizer(folder, 2100)
    return Model(folder, MistralTokenizer.from_file(folder / "tekken.json"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return _tekken(tmp_path_factory.mktemp("mistral"))


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[ServerProcess]:
    arguments = [str(model.folder), "--served-model-name", "tiny", "--dtype", "float32"]
    with ServerProcess(arguments, environment={"VLLM_SERVER_DEV_MODE": "1"}) as running:
        yield running


def test_a_conversation_is_written_and_an_answer_read_as_by_mistral_common(model, client: OpenAI):
    answer: Any = client.chat.completions.create(messages=_MESSAGES, **_EXACT)
    request = ChatCompletionRequest.from_openai(_MESSAGES)
    assert answer.prompt_token_ids == model.tokenizer.encode_chat_completion(request).tokens
    (choice,) = answer.choices
    text = model.tokenizer.instruct_tokenizer.tokenizer.decode(choice.token_ids, SpecialTokenPolicy.IGNORE)
    assert choice.message.content.strip() == text.strip(), "SentencePiece drops a space at the beginning of a text"
    streamed = client.chat.completions.create(messages=_MESSAGES, stream=True, **_EXACT)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == choice.message.content


def test_caches_are_reset(server: ServerProcess):
    assert server.ask("/reset_prefix_cache", {}).json == {"success": True}
    answer = server.ask("/reset_mm_cache", {})
    assert (answer.status, answer.body) == (200, b"")
    refused = server.ask("/reset_prefix_cache?reset_running_requests=maybe", {})
    assert (refused.status, refused.json["error"]["param"]) == (400, "reset_running_requests")
