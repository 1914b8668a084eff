"""DeepSeek-V3.2's prompts, compared with vLLM's own renderer token for token."""

from concurrent.futures import Executor
from pathlib import Path

import pytest

from server.config import ModelFiles, RendererConfig
from server.errors import RequestError
from server.renderers.deepseek_v32 import DeepseekV32Renderer
from server.renderers.prompts import ChatOptions
from tests.peer_vllm import ask_vllm, needs_vllm
from tests.server.renderers.deepseek_v32_folder import save_deepseek_v32
from tests.server.renderers.sample_conversations import Conversations

SCRIPT = Path(__file__).with_name("vllm_deepseek_v32.py")
NUM_CASES = 600


@pytest.mark.slow
@needs_vllm
def test_prompts_equal_vllm_s_token_for_token(tmp_path: Path, inline_executor: Executor) -> None:
    folder = save_deepseek_v32(tmp_path / "model")
    conversations = Conversations(seed=32)
    cases = [conversations.case() for _ in range(NUM_CASES)]
    renderer = DeepseekV32Renderer(ModelFiles(folder, folder), RendererConfig(), executor=inline_executor)
    answers = ask_vllm(SCRIPT, cases, tmp_path, folder)
    num_equal = num_rejected = num_only_ours = 0
    for case, answer in zip(cases, answers, strict=True):
        options = ChatOptions(tools=case["tools"], chat_template_kwargs=case["kwargs"])
        if "out of range" in answer.get("error", ""):  # a developer message before the last question
            num_only_ours += 1
            continue
        try:
            assert renderer.render_chat(case["messages"], options).token_ids == answer.get("token_ids"), case
            num_equal += 1
        except RequestError as err:
            assert "error" in answer, (case, err.message)
            num_rejected += 1
    print(f"{num_equal} equal, {num_rejected} rejected by both, {num_only_ours} beyond vLLM")
    assert num_equal > NUM_CASES / 2
