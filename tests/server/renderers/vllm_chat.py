"""Renders conversations with vLLM's renderer of chat templates; run by vLLM's own interpreter.

`python vllm_chat.py CASES ANSWERS FOLDER`. Each case holds `messages`, `tools`, `kwargs` and
`chat_template`, each answer `token_ids`, or `error` if vLLM rejects the conversation.
"""

import json
import sys
from pathlib import Path
from typing import Any

from vllm.config import ModelConfig, VllmConfig
from vllm.renderers.hf import HfRenderer
from vllm.renderers.params import ChatParams
from vllm.tokenizers import get_tokenizer


def render(renderer: Any, case: dict[str, Any]) -> dict[str, Any]:
    kwargs = {**case["kwargs"], "tools": case["tools"], "tokenize": True, "add_generation_prompt": True}
    params = ChatParams(chat_template=case["chat_template"], chat_template_kwargs=kwargs)
    try:
        _, prompt = renderer.render_messages(case["messages"], params)
    except Exception as err:  # noqa: BLE001 - a template may raise anything
        return {"error": f"{type(err).__name__}: {err}"}
    return {"token_ids": list(prompt["prompt_token_ids"])}


if __name__ == "__main__":
    cases, answers, folder = sys.argv[1:]
    renderer = HfRenderer(VllmConfig(model_config=ModelConfig(folder)), get_tokenizer(folder))
    Path(answers).write_text(json.dumps([render(renderer, case) for case in json.loads(Path(cases).read_text())]))
