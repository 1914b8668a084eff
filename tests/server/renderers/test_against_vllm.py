"""Prompts of random conversations, compared with vLLM's own renderers token for token; Mistral's streams."""

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import mistral_common
import pytest

from base.errors import RequestError
from server.config import ModelFiles, RendererConfig
from server.renderers.base import BaseRenderer
from server.renderers.detokenizer import PromptTail
from server.renderers.hf import HfRenderer
from server.renderers.mistral import MistralRenderer
from server.renderers.prompts import ChatOptions, TextOptions
from tests.peer_vllm import ask_vllm, needs_vllm

pytestmark = [pytest.mark.slow, needs_vllm]

TEXTS = [
    "Hello",
    "  spaces\n\nand lines\t",
    "Ça va? Größe, naïve e\u0301",
    "你好，世界 😀👩‍👩‍👧 مرحبا",
    "<think>no</think> <｜User｜> ｜DSML｜ <｜end▁of▁sentence｜>",
    "{content} %s {{ x }} \\n \x00",
    '{"a": "b"} <result>r</result>',
    "def f(x):\n    return x ** 2  # 0123456789",
    "",
]
VALUES = ["Paris", "", '北京 "q"\n', 3, -1.5e-7, True, None, [], [1, "zwei", None], {"ü": {"n": [{}]}}, "</x>"]
MALFORMED = ["{oops", "[1, 2]", "7", "null"]


class Conversations:
    """Writes random conversations; the format cannot express a few of them."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def case(self) -> dict[str, Any]:
        kwargs = self._random.choice(
            [{}, {"thinking": True}, {"enable_thinking": True}, {"thinking": False}, {"thinking": True, "x": 1}]
        )
        tools = [self._tool() for _ in range(self._random.choice([0, 0, 1, 3]))]
        return {"messages": self._messages(), "tools": tools or None, "kwargs": kwargs}

    def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self._chance(0.5):
            messages.append({"role": "system", "content": self._content()})
        if self._chance(0.2):
            messages.append(self._developer())
        for _ in range(self._random.randint(1, 4)):
            messages += self._turn()
        if self._chance(0.7):
            messages.append({"role": "user", "content": self._content()})
        return messages

    def _turn(self) -> list[dict[str, Any]]:
        question = self._developer() if self._chance(0.1) else {"role": "user", "content": self._content()}
        turn = [question]
        for _ in range(self._random.choice([0, 0, 1, 2])):
            turn += self._tool_step()
        answer: dict[str, Any] = {"role": "assistant", "content": self._answer()}
        if self._chance(0.8):
            answer["reasoning"] = self._text()
        return [*turn, answer] if self._chance(0.9) else turn

    def _tool_step(self) -> list[dict[str, Any]]:
        calls = [self._call(i) for i in range(self._random.randint(1, 3))]
        step: dict[str, Any] = {"role": "assistant", "content": self._answer(), "tool_calls": calls}
        if self._chance(0.6):
            step["reasoning"] = self._text()
        num_results = len(calls) + (self._random.choice([-1, 1]) if self._chance(0.05) else 0)
        results = [{"role": "tool", "tool_call_id": f"c{i}", "content": self._content()} for i in range(num_results)]
        return [step, *results]

    def _call(self, index: int) -> dict[str, Any]:
        arguments: Any = {
            f"{self._text()[:5]}{i}": self._random.choice(VALUES) for i in range(self._random.randint(0, 4))
        }
        if self._chance(0.7):
            arguments = json.dumps(arguments, ensure_ascii=self._chance(0.5))
        elif self._chance(0.1):
            arguments = self._random.choice(MALFORMED)
        name = self._random.choice(["get_weather", "search-web", "查询"])
        return {"id": f"c{index}", "type": "function", "function": {"name": name, "arguments": arguments}}

    def _developer(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "developer", "content": self._content()}
        return message | {"tools": [self._tool()]} if self._chance(0.5) else message

    def _tool(self) -> dict[str, Any]:
        parameters = {"type": "object", "properties": {self._text()[:8]: {"type": "string"}}, "required": []}
        return {"type": "function", "function": {"name": "f", "description": self._text(), "parameters": parameters}}

    def _content(self) -> Any:
        if self._chance(0.15):
            return [{"type": "text", "text": self._text()} for _ in range(self._random.randint(0, 3))]
        return self._text()

    def _answer(self) -> Any:
        """The content may be null, which vLLM's HTTP API rejects for the other roles."""
        return None if self._chance(0.05) else self._content()

    def _text(self) -> str:
        return " ".join(self._random.choices(TEXTS, k=self._random.randint(1, 3)))

    def _chance(self, chance: float) -> bool:
        return self._random.random() < chance


SCRIPT = Path(__file__).with_name("vllm_rendering.py")
NUM_CASES = 500
TEMPLATES = {
    "the model's own": None,
    "tools and reasoning": (
        "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
        "<|im_end|>\n{% endif %}"
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
        "{{ message.content or '' }}"
        "{% for call in message.tool_calls or [] %}"
        "{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "parts": (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% for part in message['content'] %}[{{ part['text'] }}]{% endfor %}<|im_end|>\n{% endfor %}"
    ),
    "developer role": (
        "{% for message in messages %}{% if message['role'] == 'developer' %}DEV {% endif %}"
        "{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    ),
    "no tools": (
        "{% for message in messages %}"
        "{% if message['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
        "{{ message['role'] }}: {{ message['content'] | trim }}\n{% endfor %}"
        "{% if thinking is defined and thinking %}<think>{% endif %}"
    ),
}


def compare(cases: list[dict[str, Any]], renderers: dict[str | None, BaseRenderer], folder: Path, work: Path) -> None:
    """Renders each case with the renderer of its template."""
    num_equal = num_rejected = 0
    for case, answer in zip(cases, ask_vllm(SCRIPT, cases, work, "templates", folder), strict=True):
        options = ChatOptions(tools=case["tools"], chat_template_kwargs=case["kwargs"])
        try:
            token_ids = renderers[case["chat_template"]].render_chat(case["messages"], options).token_ids
            assert token_ids == answer.get("token_ids"), (case, answer)
            num_equal += 1
        except RequestError as err:
            assert "error" in answer, (case, err.message)
            num_rejected += 1
    print(f"{num_equal} equal, {num_rejected} rejected by both")
    assert num_equal > NUM_CASES / 2


def test_prompts_of_templates_are_the_same(tmp_path, model_path, inline_executor):
    conversations = Conversations(seed=7)
    cases: list[dict[str, Any]] = []
    for _ in range(NUM_CASES // len(TEMPLATES)):
        for name, template in TEMPLATES.items():
            case = conversations.case() | {"chat_template": template}
            if name != "parts" or all(message["role"] != "developer" for message in case["messages"]):
                cases.append(case)  # vLLM passes text to a template that loops over parts, which then finds none
    files = ModelFiles(model_path, model_path)
    renderers: dict[str | None, BaseRenderer] = {
        template: HfRenderer(files, RendererConfig(chat_template=template), executor=inline_executor)
        for template in TEMPLATES.values()
    }
    compare(cases, renderers, model_path, tmp_path)


MISTRAL_TEXTS = [
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
RESULTS = [*MISTRAL_TEXTS, "22.5", '{"b": 1, "a": [true, {"ü": "é"}]}', "null", "[]"]
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


class MistralWriter:
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
        return " ".join(self.rng.choices(MISTRAL_TEXTS, k=self.rng.choice((1, 1, 2, 3))))


def options_of(body: dict[str, Any]) -> ChatOptions:
    return ChatOptions(**{name: value for name, value in body.items() if name != "messages"})


def test_prompts_and_streams_of_mistral_are_the_same(mistral_folders, build_mistral, tmp_path):
    work = {kind: vllm_cases(kind, build_mistral(kind)) for kind in mistral_folders}
    version, answers = ask_vllm(SCRIPT, work, tmp_path, "mistral")
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
    bodies = [MistralWriter(kind, seed).write() for seed in range(60)]
    rng = random.Random(kind)
    encode = partial(renderer.tokenizer.encode, add_special_tokens=False)
    special = [token_id for token_id in renderer.tokenizer.added_tokens if token_id < 60]
    streams = []
    for body in bodies:
        output = [*encode(rng.choice(MISTRAL_TEXTS)), rng.choice(special), *encode(rng.choice(MISTRAL_TEXTS))]
        streams.append((renderer.render_chat(body["messages"], options_of(body)).token_ids, output))
    folder = str(renderer.files.tokenizer_path)
    return {"folder": folder, "bodies": bodies, "texts": MISTRAL_TEXTS, "streams": streams}
