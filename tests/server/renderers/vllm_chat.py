"""Renders conversations with one of vLLM's renderers; run by vLLM's own interpreter.

`python vllm_chat.py CASES ANSWERS FOLDER`: the folder's files choose the renderer. Each case holds
`messages`, `tools`, `kwargs` and `chat_template`, each answer `token_ids`, or `error` if vLLM rejects the
conversation.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vllm.config import ModelConfig, VllmConfig
from vllm.renderers.deepseek_v32 import DeepseekV32Renderer
from vllm.renderers.hf import HfRenderer
from vllm.renderers.params import ChatParams
from vllm.tokenizers import get_tokenizer
from vllm.tokenizers.deepseek_v32 import DeepseekV32Tokenizer


def create(folder: str) -> Any:
    if json.loads((Path(folder) / "config.json").read_text())["model_type"] != "deepseek_v32":
        return HfRenderer(VllmConfig(model_config=ModelConfig(folder)), get_tokenizer(folder))
    renderer = object.__new__(DeepseekV32Renderer)
    renderer.tokenizer = DeepseekV32Tokenizer.from_pretrained(folder)
    renderer.model_config = SimpleNamespace(
        multimodal_config=None, enable_prompt_embeds=False, allowed_local_media_path="", allowed_media_domains=None
    )
    return renderer


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
    renderer = create(folder)
    Path(answers).write_text(json.dumps([render(renderer, case) for case in json.loads(Path(cases).read_text())]))
