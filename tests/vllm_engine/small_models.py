"""Models of a few megabytes that can be shared by two ranks: SmolLM2's nine heads cannot."""

import shutil
from pathlib import Path

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_VOCAB = 49152


def save_small_llama(folder: Path, tokenizer: Path) -> Path:
    """Random weights, wide enough apart that rounding chooses no token; the tokenizer is copied."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCAB,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.4,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, folder / name)
    return folder


def generate(folder: Path, prompt: str, max_tokens: int) -> str:
    """What comes at temperature 0, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**tokens, max_new_tokens=max_tokens, min_new_tokens=max_tokens, do_sample=False)
    return str(tokenizer.decode(ids[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True))
