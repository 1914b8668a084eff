"""The output of transformers' own `generate`, as a reference for servers."""

from pathlib import Path


def generate(folder: Path, prompt: str, max_tokens: int) -> str:
    """The output at temperature 0 in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**tokens, max_new_tokens=max_tokens, min_new_tokens=max_tokens, do_sample=False)
    return str(tokenizer.decode(ids[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True))
