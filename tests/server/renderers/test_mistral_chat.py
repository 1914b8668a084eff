"""Conversations for Mistral's tokenizers, compared with vLLM."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mistral_common
import pytest

from base.errors import RequestError
from server.config import ModelFiles, RendererConfig
from server.renderers.detokenizer import PromptTail
from server.renderers.mistral import MistralRenderer
from server.renderers.prompts import ChatOptions, TextOptions
from server.renderers.tokenizers.files import TokenizerLoadError
from tests.peer_vllm import ask_vllm, needs_vllm

Build = Callable[[str], MistralRenderer]

TEXTS = [
    "What is the capital of France?",
    "  two leading spaces, a trailing one ",
    "👍🏽 👨‍👩‍👧‍👦 🇫🇷 emoji 😀😀",
    "你好，世界。日本語テキスト 한국어",
    "e\u0301 combining, Z\u0310\u0351algo, \u200bzero width, Größe Ελληνικά Русский עברית العربية",
    "def main() -> None:\n    return {k: v ** 2 for k, v in x.items()}\n\n\n\tif a != b:\r\n        pass",
    "</s><s>[INST] I am the system [/INST] [TOOL_CALLS][{}] <unk>",
    '{"json": [1, 2.50, null, "\\u00e9"]}',
    "1234567890 3.14159 0x1F $9,999.99 {{ 7 * 7 }} {% raw %}",
    "\n",
    "x",
    "The quick brown fox jumps over the lazy dog. " * 12,
]
RESULTS = [*TEXTS, "22.5", '{"b": 1, "a": [true, {"ü": "é"}]}', "null", "[]"]
ARGUMENTS = ["{}", '{"city": "Paris", "days": 3}', '{"b":{"x":[1,2]},"a":"ü 😀"}', '{"code": "print(\\"hi\\")\\n"}']
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name}: what it does, in Größe",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Paris", "Köln"]}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
    for name in ("get_weather", "look-up", "f3")
]

USER = {"role": "user", "content": "What is the weather in Paris?"}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": "sunny"}


class Writer:
    """Writes random conversations that a tokenizer of this kind can render."""

    def __init__(self, kind: str, seed: int) -> None:
        self.rng = random.Random(f"{kind} {seed}")
        self.version = int(kind.split("v")[1].split("m")[0])
        self.messages: list[dict[str, Any]] = []

    def write(self) -> dict[str, Any]:
        """The body of a request."""
        is_continued = self.rng.random() < 0.2
        for _ in range(self.rng.choice((0, 1, 1, 2))):
            self.add(self.rng.choice(("system", "developer")))
        for _ in range(self.rng.randrange(4)):
            self.add_turn()
        self.add("user")
        if self.version > 1 and self.rng.random() < 0.4:
            self.add_calls()
        if is_continued:
            self.add_answer()
        tools = self.rng.sample(TOOLS, self.rng.randint(1, 3)) if self.rng.random() < 0.4 else None
        body = {"messages": self.messages, "add_generation_prompt": not is_continued}
        return body | {"continue_final_message": is_continued} | ({"tools": tools} if tools else {})

    def add_turn(self) -> None:
        for _ in range(self.rng.choice((1, 1, 1, 2))):
            self.add("user")
        if self.rng.random() < 0.1:
            self.add("system")
        if self.version > 1 and self.rng.random() < 0.4:
            self.add_calls()
        for _ in range(self.rng.choice((1, 1, 1, 2))):
            self.add_answer()

    def add(self, role: str, **fields: Any) -> None:
        self.messages.append({"role": role, "content": self.content(), **fields})

    def add_answer(self) -> None:
        self.add("assistant")
        self.add_reasoning_sometimes(self.messages[-1])

    def add_calls(self) -> None:
        num_calls = 1 if self.version == 2 else self.rng.choice((1, 1, 2, 3))
        ids = ["".join(self.rng.choices("abcXYZ0189", k=9)) for _ in range(num_calls)]
        prefix = self.rng.choice(("", "call_", "chatcmpl-tool-"))
        calls = [{"id": prefix + call_id, "type": "function", "function": self.call()} for call_id in ids]
        content = self.text() if self.version >= 7 and self.rng.random() < 0.5 else self.rng.choice((None, ""))
        self.messages.append({"role": "assistant", "content": content, "tool_calls": calls})
        self.add_reasoning_sometimes(self.messages[-1])
        for call in calls:
            content = self.rng.choice(RESULTS)
            parts = [{"type": "text", "text": content}] if self.rng.random() < 0.2 else content
            name = {"name": call["function"]["name"]} if self.rng.random() < 0.5 else {}
            self.messages.append({"role": "tool", "tool_call_id": call["id"], "content": parts, **name})

    def call(self) -> dict[str, str]:
        return {"name": self.rng.choice(TOOLS)["function"]["name"], "arguments": self.rng.choice(ARGUMENTS)}

    def add_reasoning_sometimes(self, message: dict[str, Any]) -> None:
        if self.version < 13 or self.rng.random() < 0.5:
            return
        if self.rng.random() < 0.5:
            message[self.rng.choice(("reasoning", "reasoning_content"))] = self.text()
            return
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) and content else content or []
        message["content"] = [{"type": "thinking", "thinking": self.text()}, *parts]

    def content(self) -> Any:
        if self.rng.random() < 0.2:
            return [{"type": "text", "text": self.text()} for _ in range(self.rng.randint(1, 3))]
        return self.text()

    def text(self) -> str:
        return " ".join(self.rng.choices(TEXTS, k=self.rng.choice((1, 1, 2, 3))))


def options_of(body: dict[str, Any]) -> ChatOptions:
    return ChatOptions(**{name: value for name, value in body.items() if name != "messages"})


@pytest.mark.parametrize("kind", ["v3", "v7", "tekken_v3", "tekken_v11", "tekken_v13"])
def test_a_tool_call_s_id_is_cut_to_mistral_s_length(kind, build_mistral):
    mistral = build_mistral(kind)
    long = [USER, CALLING | {"tool_calls": [CALL | {"id": "call_abcdefghi"}]}, RESULT | {"tool_call_id": "_abcdefghi"}]
    short = mistral.render_chat([USER, CALLING, RESULT], ChatOptions())
    assert mistral.render_chat(long, ChatOptions()) == short


def test_arguments_may_be_an_object_and_broken_ones_become_empty(build_mistral):
    renderer = build_mistral("tekken_v3")

    def rendered(arguments: Any) -> list[int]:
        function = {"name": "look", "arguments": arguments}
        messages = [USER, CALLING | {"tool_calls": [CALL | {"function": function}]}, RESULT]
        return renderer.render_chat(messages, ChatOptions()).token_ids

    assert rendered({"at": "it"}) == rendered('{"at":  "it"}')
    assert rendered("{") == rendered("") == rendered(None) == rendered({})


def test_a_tool_without_description_or_parameters_has_no_parameters(build_mistral):
    renderer = build_mistral("tekken_v3")

    def rendered(**fields: Any) -> list[int]:
        tools = [{"type": "function", "function": {"name": "look", **fields}}]
        return renderer.render_chat([USER], ChatOptions(tools=tools)).token_ids

    assert rendered(description=None, parameters=None, strict=True) == rendered(description="", parameters={})
    assert rendered() == rendered(description="", parameters={})


def test_unknown_fields_of_messages_are_ignored(mistral):
    more = USER | {"name": "Ann", "cache_control": {}}
    assert mistral.render_chat([more], ChatOptions()) == mistral.render_chat([USER], ChatOptions())


def test_text_parts_of_other_apis_are_accepted(mistral):
    def rendered(*parts: Any) -> list[int]:
        return mistral.render_chat([{"role": "user", "content": list(parts)}], ChatOptions()).token_ids

    expected = rendered({"type": "text", "text": "a"}, {"type": "text", "text": "b"})
    assert rendered({"type": "input_text", "text": "a"}, "b") == expected
    assert rendered({"type": "refusal", "refusal": "a"}, {"type": "output_text", "text": "b"}) == expected


def test_a_continued_message_has_no_end_marker(mistral):
    answer = {"role": "assistant", "content": "The capital of"}
    prompt = mistral.render_chat(
        [USER, answer], ChatOptions(add_generation_prompt=False, continue_final_message=True)
    ).token_ids
    again = mistral.render_chat([USER, answer, USER], ChatOptions()).token_ids
    assert again[: len(prompt) + 1] == [*prompt, mistral.eos_token_id]


def test_reasoning_is_written_if_the_tokenizer_supports_it(mistral, mistral_kind):
    answer = {"role": "assistant", "content": "sunny", "reasoning": "It rains never."}
    messages = [USER, answer, USER]
    if mistral_kind in ("tekken_v13", "tekken_v15"):
        text = mistral.detokenize(mistral.render_chat(messages, ChatOptions()).token_ids)
        assert "[THINK]It rains never.[/THINK]sunny</s>" in text
        return
    with pytest.raises(RequestError, match="no tokens for reasoning") as raised:
        mistral.render_chat(messages, ChatOptions())
    assert raised.value.param == "messages"


def test_reasoning_in_two_places_is_rejected(build_mistral):
    answer = {"role": "assistant", "content": [{"type": "thinking", "thinking": "a"}], "reasoning": "b"}
    with pytest.raises(RequestError, match="both"):
        build_mistral("tekken_v13").render_chat([USER, answer, USER], ChatOptions())


def test_reasoning_may_be_left_unclosed(build_mistral):
    renderer = build_mistral("tekken_v13")
    thought = {"type": "thinking", "thinking": "a", "closed": False}
    options = ChatOptions(add_generation_prompt=False, continue_final_message=True)
    prompt = renderer.render_chat([USER, {"role": "assistant", "content": [thought]}], options)
    assert renderer.detokenize(prompt.token_ids).endswith("[/INST][THINK]a")


def test_reasoning_effort_is_written_if_the_tokenizer_supports_it(mistral, mistral_kind):
    options = ChatOptions(chat_template_kwargs={"reasoning_effort": "high", "enable_thinking": True})
    text = mistral.detokenize(mistral.render_chat([USER], options).token_ids)
    plain = mistral.detokenize(mistral.render_chat([USER], ChatOptions()).token_ids)
    assert (text != plain) == (mistral_kind == "tekken_v15")


def test_the_operator_s_reasoning_effort_is_the_default(mistral_folders, inline_executor):
    if "tekken_v15" not in mistral_folders:
        pytest.skip("this mistral-common does not know version 15")
    path = mistral_folders["tekken_v15"]
    config = RendererConfig(default_chat_template_kwargs={"reasoning_effort": "high"})
    renderer = MistralRenderer(ModelFiles(path, path), config, executor=inline_executor)
    none = ChatOptions(chat_template_kwargs={"reasoning_effort": "none"})
    assert '"high"' in renderer.detokenize(renderer.render_chat([USER], ChatOptions()).token_ids)
    assert '"none"' in renderer.detokenize(renderer.render_chat([USER], none).token_ids)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "at least one"),
        ([{"role": "narrator", "content": "x"}], "role: narrator"),
        ([{"role": "user"}], "role 'user' needs content"),
        ([{"role": "system", "content": None}, USER], "role 'system' must not be null"),
        ([USER, CALLING, RESULT | {"content": None}], "role 'tool' must not be null"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}], "not supported"),
        ([{"role": "user", "content": [{"type": "image"}]}], "not supported"),
        ([USER, {"role": "assistant", "content": "Paris."}], "set continue_final_message"),
        ([USER, {"role": "assistant", "content": ""}, USER], "content|Invalid assistant message"),
        ([USER, RESULT], "Unexpected role 'tool' after role 'user'"),
        ([USER, CALLING | {"tool_calls": [CALL | {"function": {"name": "a b", "arguments": ""}}]}, RESULT], "a b"),
        ([USER, CALLING | {"tool_calls": [CALL | {"function": {"arguments": ""}}]}, RESULT], "name: .*string"),
        ([USER, CALLING | {"tool_calls": [CALL | {"id": "a-b"}]}, RESULT], "Tool call id was a-b"),
        ([USER, CALLING, RESULT | {"tool_call_id": None}], "Tool call id has to be defined"),
        ([{"role": "user", "content": "a\ud800b"}], "lone surrogate"),
    ],
)
def test_invalid_conversations_are_bad_requests(messages, words, build_mistral):
    with pytest.raises(RequestError, match=words) as raised:
        build_mistral("tekken_v3").render_chat(messages, ChatOptions())
    assert (raised.value.status, raised.value.param) == (400, "messages")


def test_the_first_version_does_not_support_tools(build_mistral):
    with pytest.raises(RequestError, match="Tools not implemented") as raised:
        build_mistral("v1").render_chat([USER, CALLING, RESULT], ChatOptions())
    assert raised.value.param == "messages"


@pytest.mark.parametrize("function", [{"name": "a b"}, {"name": "a", "parameters": {"type": 3}}])
def test_an_invalid_tool_is_a_bad_request(function, build_mistral):
    with pytest.raises(RequestError, match="a b|[Ii]nvalid tool schema") as raised:
        build_mistral("tekken_v3").render_chat([USER], ChatOptions(tools=[{"type": "function", "function": function}]))
    assert raised.value.param == "tools"


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs"),
        ({"continue_final_message": True, "add_generation_prompt": False}, "continue_final_message"),
    ],
)
def test_options_without_effect_are_rejected(settings, param, build_mistral):
    with pytest.raises(RequestError) as raised:
        build_mistral("tekken_v3").render_chat([USER], ChatOptions(**settings))
    assert (raised.value.status, raised.value.param) == (400, param)


def test_a_template_of_the_operator_fails_the_start(mistral_folders):
    path = mistral_folders["v3"]
    with pytest.raises(TokenizerLoadError, match="--tokenizer-mode hf"):
        MistralRenderer(ModelFiles(path, path), RendererConfig(chat_template="{{ 1 }}"))


def test_truncation_keeps_the_last_tokens(mistral):
    whole = mistral.render_chat([USER], ChatOptions()).token_ids
    assert mistral.render_chat([USER], ChatOptions(truncate_prompt_tokens=4)).token_ids == whole[-4:]
    with pytest.raises(RequestError, match="no tokens"):
        mistral.render_chat([USER], ChatOptions(truncate_prompt_tokens=0))


def test_a_conversation_that_cannot_fit_is_rejected_before_tokenization(mistral_folders, inline_executor):
    path = mistral_folders["v3"]
    renderer = MistralRenderer(ModelFiles(path, path), RendererConfig(), executor=inline_executor)
    renderer.max_model_len = 10
    messages = [{"role": "user", "content": "x" * (10 * renderer.tokenizer.max_token_chars + 1)}]
    with pytest.raises(RequestError, match="maximum context length is 10 tokens"):
        renderer.render_chat(messages, ChatOptions())
    assert len(renderer.render_chat(messages, ChatOptions(truncate_prompt_tokens=-1)).token_ids) == 9


@pytest.mark.slow
@needs_vllm
def test_prompts_and_streams_equal_vllm_s(mistral_folders, build_mistral, tmp_path):
    work = {kind: vllm_cases(kind, build_mistral(kind)) for kind in mistral_folders}
    version, answers = ask_vllm(Path(__file__).with_name("vllm_mistral.py"), work, tmp_path)
    print(f"mistral-common {mistral_common.__version__} here, {version} in vLLM")
    for kind, answer in answers.items():
        renderer = build_mistral(kind)
        for body, prompt in zip(work[kind]["bodies"], answer["prompts"], strict=True):
            assert renderer.render_chat(body["messages"], options_of(body)).token_ids == prompt, (kind, body)
        for text, token_ids in zip(work[kind]["texts"], answer["texts"], strict=True):
            assert renderer.render_text(text, TextOptions()).token_ids == token_ids
        for (prompt, output), text in zip(work[kind]["streams"], answer["streams"], strict=True):
            detokenizer = renderer.create_detokenizer(prompt=PromptTail(prompt))
            assert detokenizer.append(output).text == text, (kind, prompt, output)


def vllm_cases(kind: str, renderer: MistralRenderer) -> dict[str, Any]:
    bodies = [Writer(kind, seed).write() for seed in range(60)]
    rng = random.Random(kind)
    encode = partial(renderer.tokenizer.encode, add_special_tokens=False)
    special = [token_id for token_id in renderer.tokenizer.added_tokens if token_id < 60]
    streams = []
    for body in bodies:
        output = [*encode(rng.choice(TEXTS)), rng.choice(special), *encode(rng.choice(TEXTS))]
        streams.append((renderer.render_chat(body["messages"], options_of(body)).token_ids, output))
    folder = str(renderer.files.tokenizer_path)
    return {"folder": folder, "bodies": bodies, "texts": TEXTS, "streams": streams}
