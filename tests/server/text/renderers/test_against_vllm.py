"""Prompts of random conversations equal those of vLLM's own renderer token for token."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from base.errors import RequestError
from server.terms.config import ModelFiles, RendererConfig
from server.text.renderers.prompts import ChatOptions
from server.text.renderers.renderer import Renderer
from tests.conversations.conversation import read_lines
from tests.support.peer_vllm import ask_vllm, needs_vllm

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


class Conversations:
    """Makes random conversations. The format cannot express a few of them."""

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
            arguments = self._random.choice(["{oops", "[1, 2]", "7", "null"])
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
        """The content of an answer. It may be null, which vLLM's HTTP API rejects for other roles."""
        return None if self._chance(0.05) else self._content()

    def _text(self) -> str:
        return " ".join(self._random.choices(TEXTS, k=self._random.randint(1, 3)))

    def _chance(self, chance: float) -> bool:
        return self._random.random() < chance


SCRIPT = Path(__file__).with_name("vllm_rendering.py")
NUM_CASES = 500
TEMPLATES = {line["name"]: line["template"] for _, line in read_lines(Path(__file__).with_name("vllm_templates.jsonl"))}


def compare(cases: list[dict[str, Any]], renderers: dict[str | None, Renderer], folder: Path, work: Path) -> None:
    num_equal = num_rejected = 0
    for case, answer in zip(cases, ask_vllm(SCRIPT, cases, work, folder), strict=True):
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
    renderers: dict[str | None, Renderer] = {
        template: Renderer(files, RendererConfig(chat_template=template), executor=inline_executor)
        for template in TEMPLATES.values()
    }
    compare(cases, renderers, model_path, tmp_path)
