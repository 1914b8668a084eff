"""A real model that answers like an agent. It is a small Llama, trained on a few lines and their answers.

Its chat template gives the model only the last line of the question and of a tool's first result. So the
model knows the answer in any conversation, unless a client loses the question.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.server.engine.sampling.byte_tokenizer import EOS, VOCAB_SIZE, save_byte_tokenizer

_CHAT_TEMPLATE: Final = (
    "{% set seen = namespace(user='', tool='') %}"
    "{% for message in messages if not seen.tool %}"
    "{% if message.role == 'user' %}{% set seen.user = message.content %}"
    "{% elif message.role == 'tool' %}{% set seen.tool = message.content %}"
    "{% endif %}{% endfor %}"
    r"user: {{ seen.user.strip().split('\n')[-1] + '\n' }}"
    r"{% if seen.tool %}tool: {{ seen.tool.strip().split('\n')[-1] + '\n' }}{% endif %}"
)
_MOST_STEPS: Final = 2000
_SURE: Final = 0.001
"""The training ends at this mean loss, because greedy answers are then right."""


def save_agent_model(folder: Path, memory: Mapping[str, str], *, max_model_len: int = 4096) -> Path:
    """Trains the model until it knows the answers, which takes 20 s of one core."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more threads are slower on a busy machine
    _train(memory, max_model_len).save_pretrained(folder)
    torch.set_num_threads(num_threads)
    save_byte_tokenizer(folder)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "chat_template": _CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _train(memory: Mapping[str, str], max_model_len: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=max_model_len,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    input_ids, labels = _batch(memory)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(_MOST_STEPS):
        loss = model(input_ids=input_ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < _SURE:
            return model.eval()
    raise AssertionError(f"the model has not learned its answers: loss {loss.item()}")


def _batch(memory: Mapping[str, str]) -> tuple[Any, Any]:
    """Pairs of a line and its answer as rows of bytes. Only the answers are learned."""
    import torch

    rows = [([*f"{line}\n".encode()], [*answer.encode(), EOS]) for line, answer in memory.items()]
    width = max(len(line) + len(answer) for line, answer in rows)
    input_ids = torch.full((len(rows), width), EOS)
    labels = torch.full((len(rows), width), -100)
    for row, (line, answer) in enumerate(rows):
        end = len(line) + len(answer)
        input_ids[row, :end] = torch.tensor(line + answer)
        labels[row, len(line) : end] = torch.tensor(answer)
    return input_ids, labels
