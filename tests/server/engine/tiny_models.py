"""Builds models with random weights in the real formats, one per architecture, a few kilobytes each."""

from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from server.engine.compute.linear import pack_linear_layers

VOCAB = 128
_COMMON: dict[str, object] = {
    "vocab_size": VOCAB,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_LLAMA_LIKE: dict[str, object] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_GEMMA = {**_LLAMA_LIKE, "head_dim": 16}

PACKED: dict[str, dict[str, object]] = {
    "llama": _LLAMA_LIKE,
    "mistral": {**_LLAMA_LIKE, "sliding_window": 24},
    "qwen2": _LLAMA_LIKE,
    "qwen3": {**_LLAMA_LIKE, "head_dim": 16},
    "gemma": _GEMMA,
    "gemma2": {**_GEMMA, "sliding_window": 24, "query_pre_attn_scalar": 16},
    "gemma3_text": {**_GEMMA, "sliding_window": 24, "query_pre_attn_scalar": 16},
    "phi": {**_LLAMA_LIKE, "num_key_value_heads": 4},
    "phi3": {**_LLAMA_LIKE, "original_max_position_embeddings": 512},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gpt_neox": {**_LLAMA_LIKE, "num_key_value_heads": 4},
    "gpt_oss": {**_GEMMA, "sliding_window": 24, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**_GEMMA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "olmo2": _LLAMA_LIKE,
    "starcoder2": {**_LLAMA_LIKE, "sliding_window": 24},
    "granite": _LLAMA_LIKE,
    "smollm3": _LLAMA_LIKE,
    "mixtral": {**_LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "cohere2": {**_LLAMA_LIKE, "sliding_window": 24},
    "opt": {
        "hidden_size": 64,
        "ffn_dim": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "word_embed_proj_dim": 64,
    },
    "deepseek_v3": {
        **_LLAMA_LIKE,
        "num_key_value_heads": 4,
        "q_lora_rank": 32,
        "kv_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 12,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
    },
}
"""Architecture of the packed runner -> options of its configuration."""

SEQUENTIAL: dict[str, dict[str, object]] = {
    "mamba": {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    "falcon_h1": {
        **_LLAMA_LIKE,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
    },
    "bamba": {**_LLAMA_LIKE, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_chunk_size": 16},
    "recurrent_gemma": {**_GEMMA, "num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 24},
    "rwkv": {"hidden_size": 64, "num_hidden_layers": 2, "attention_hidden_size": 64},
}
"""Architecture of the sequential runner -> its options. These have other state or their own attention."""


def build_model(model_type: str, options: dict[str, object], *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model whose weights all affect the output. Greedy decoding does not repeat one token."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**(_COMMON | options)), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _initialise(name, parameter)
    return model.to(dtype).eval()


def save_model(path: Path, model_type: str, options: dict[str, object]) -> Path:
    """Saves the model as safetensors with its config.json."""
    build_model(model_type, options).save_pretrained(path)
    return path


def pack_layers(model: torch.nn.Module) -> None:
    """Packs all linear layers, as an engine does at idle."""
    for _ in pack_linear_layers(model):
        pass


def random_prompts(*lengths: int, seed: int = 1) -> list[list[int]]:
    """Prompts of these lengths, without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]


def greedy_outputs(model: PreTrainedModel, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """The output of the model's `generate` for each prompt alone. Ignores the end of sequence."""
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=model.device)
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        outputs.append(output[0].tolist()[len(prompt) :])
    return outputs


def _initialise(name: str, parameter: torch.Tensor) -> None:
    if name.endswith(("A_log", "conv1d.weight", "conv1d.bias", "dt_bias", ".D")):
        return
    if parameter.dim() < 2:
        parameter.add_(torch.randn_like(parameter) * 0.1)
    elif any(part in name for part in ("embed", "wte", "wpe")):
        parameter.normal_(0, 0.5)
    else:
        is_score = any(part in name for part in ("q_proj", "k_proj", "qkv", "query_key", "c_attn"))
        parameter.normal_(0, (2.0 if is_score else 1.0) * parameter.shape[-1] ** -0.5)
