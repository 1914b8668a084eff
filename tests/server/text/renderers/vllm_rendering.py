"""A script for vLLM's Python: renders conversations with vLLM's own code, for `test_against_vllm.py`.

`python vllm_rendering.py CASES ANSWERS FOLDER`: each case has `messages`, `tools`, `kwargs` and
`chat_template`. Each answer has `token_ids`, or `error` if vLLM rejects the conversation.
"""

import json
import sys
from pathlib import Path
from typing import Any

from vllm.config import ModelConfig, VllmConfig
from vllm.renderers.hf import HfRenderer
from vllm.renderers.params import ChatParams
from vllm.tokenizers import get_tokenizer

cases, answers, folder = sys.argv[1:]
renderer = HfRenderer(VllmConfig(model_config=ModelConfig(folder)), get_tokenizer(folder))


def render(case: dict[str, Any]) -> dict[str, Any]:
    kwargs = {**case["kwargs"], "tools": case["tools"], "tokenize": True, "add_generation_prompt": True}
    params = ChatParams(chat_template=case["chat_template"], chat_template_kwargs=kwargs)
    try:
        _, prompt = renderer.render_messages(case["messages"], params)
    except Exception as err:  # noqa: BLE001 - a template may raise anything
        return {"error": f"{type(err).__name__}: {err}"}
    return {"token_ids": list(prompt["prompt_token_ids"])}


Path(answers).write_text(json.dumps([render(case) for case in json.loads(Path(cases).read_text())]))
