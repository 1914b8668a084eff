"""Renders conversations with vLLM's DeepSeek-V3.2 renderer; run by vLLM's own interpreter.

`python vllm_deepseek_v32.py CASES ANSWERS FOLDER`: each case holds `messages`, `tools` and `kwargs`, each
answer `token_ids` or, if vLLM rejects the conversation, `error`.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

from vllm.renderers.deepseek_v32 import DeepseekV32Renderer
from vllm.renderers.params import ChatParams
from vllm.tokenizers.deepseek_v32 import DeepseekV32Tokenizer


def main(cases: str, answers: str, folder: str) -> None:
    renderer = object.__new__(DeepseekV32Renderer)
    renderer.tokenizer = DeepseekV32Tokenizer.from_pretrained(folder)
    renderer.model_config = SimpleNamespace(
        multimodal_config=None, enable_prompt_embeds=False, allowed_local_media_path="", allowed_media_domains=None
    )
    written = [render(renderer, case) for case in json.loads(Path(cases).read_text())]
    Path(answers).write_text(json.dumps(written))


def render(renderer: DeepseekV32Renderer, case: dict) -> dict:
    params = ChatParams(chat_template_kwargs={**case["kwargs"], "tools": case["tools"]})
    try:
        _, prompt = renderer.render_messages(case["messages"], params)
    except ValueError as err:
        return {"error": str(err)}
    return {"token_ids": prompt["prompt_token_ids"]}


if __name__ == "__main__":
    main(*sys.argv[1:])
