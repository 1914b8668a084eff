"""Prompts of chat templates, compared with vLLM's own renderer token for token."""

from pathlib import Path
from typing import Any

import pytest

from base.errors import RequestError
from server.config import ModelFiles, RendererConfig
from server.renderers.base import BaseRenderer
from server.renderers.hf import HfRenderer
from server.renderers.prompts import ChatOptions
from tests.peer_vllm import ask_vllm, needs_vllm
from tests.server.renderers.sample_conversations import Conversations

pytestmark = [pytest.mark.slow, needs_vllm]

SCRIPT = Path(__file__).with_name("vllm_chat.py")
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
    renderers: dict[str | None, BaseRenderer] = {
        template: HfRenderer(files, RendererConfig(chat_template=template), executor=inline_executor)
        for template in TEMPLATES.values()
    }
    compare(cases, renderers, model_path, tmp_path)
