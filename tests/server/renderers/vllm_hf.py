"""Renders conversations with vLLM's HfRenderer; run by vLLM's own interpreter.

`python vllm_hf.py CASES ANSWERS FOLDER`: each case holds `messages`, `tools`, `kwargs` and `chat_template`,
each answer `token_ids` or, if vLLM rejects the conversation, `error`.
"""

import json
import sys
from pathlib import Path

from vllm.config import ModelConfig, VllmConfig
from vllm.renderers.hf import HfRenderer
from vllm.renderers.params import ChatParams
from vllm.tokenizers import get_tokenizer


def main(cases: str, answers: str, folder: str) -> None:
    renderer = HfRenderer(VllmConfig(model_config=ModelConfig(folder)), get_tokenizer(folder))
    written = [render(renderer, case) for case in json.loads(Path(cases).read_text())]
    Path(answers).write_text(json.dumps(written))


def render(renderer: HfRenderer, case: dict) -> dict:
    kwargs = {**case["kwargs"], "tools": case["tools"], "tokenize": True, "add_generation_prompt": True}
    params = ChatParams(chat_template=case["chat_template"], chat_template_kwargs=kwargs)
    try:
        _, prompt = renderer.render_messages(case["messages"], params)
    except Exception as err:  # noqa: BLE001 - a template may raise anything
        return {"error": f"{type(err).__name__}: {err}"}
    return {"token_ids": list(prompt["prompt_token_ids"])}


if __name__ == "__main__":
    main(*sys.argv[1:])
