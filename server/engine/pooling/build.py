"""Builds the engine core of a pooling model; runs in the engine process."""

from server.config import EngineConfig, ModelFiles
from server.engine.base_core import PromptLimits
from server.engine.compute.linear import LinearPacker
from server.engine.phases import Phases
from server.engine.pooling.core import PoolingCore
from server.engine.pooling.loading import load_pooling_model
from server.engine.pooling.sequence import BatchLimits
from server.errors import EngineStartError
from server.model_files.kind import ModelKind
from server.types import EngineInfo

_BATCHED_TOKENS = {"cpu": 1024, "cuda": 16384}


def build_pooling_core(
    kind: ModelKind, files: ModelFiles, config: EngineConfig, phases: Phases
) -> tuple[PoolingCore, EngineInfo]:
    """Loads the model and builds its engine core.

    Raises:
        EngineStartError: the model cannot be loaded or does not support the configuration.
    """
    if config.lora.enable_lora:
        raise EngineStartError("--enable-lora needs a model that generates text; this one pools")
    with phases.span("load_weights"):
        pooling = load_pooling_model(files, config, kind)
    model = pooling.encoder.model
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    batched = config.max_num_batched_tokens or _BATCHED_TOKENS.get(model.device.type, _BATCHED_TOKENS["cpu"])
    core = PoolingCore(
        pooling.head,
        limits=BatchLimits(max_num_seqs=config.max_num_seqs, max_num_batched_tokens=batched),
        prompt_limits=PromptLimits(pooling.max_model_len, vocab_size),
        defaults=pooling.defaults,
        packer=LinearPacker(model),
    )
    info = EngineInfo(
        model_type=model.config.model_type,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        max_model_len=pooling.max_model_len,
        vocab_size=vocab_size,
        num_slots=config.max_num_seqs,
        kv_cache_tokens=0,
        kv_cache_bytes=0,
        runner="pooling",
        eos_token_ids=(),
        spans=phases.spans,
        pooling=pooling.info,
    )
    return core, info
