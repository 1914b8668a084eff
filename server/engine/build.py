"""Builds the engine core and its parts, in the engine process."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from transformers import PreTrainedModel

from base.machine.processors import usable_count
from server.engine.base_core import PromptLimits
from server.engine.compute.attention import UnsupportedAttentionError
from server.engine.compute.linear import multiply_in_float32
from server.engine.compute.packed_runner import PackedRunner
from server.engine.compute.sequential_runner import SequentialRunner
from server.engine.core import EngineCore
from server.engine.memory.cache_manager import CacheManager
from server.engine.memory.kv_cache import KVCache, LayerShape
from server.engine.memory.prefix_cache import PrefixCache
from server.engine.memory.sizing import NO_WORKING_MEMORY, PREFIX_SHARE, CacheSize, estimate_working_memory, size_cache
from server.engine.model_loading import derive_max_model_len, find_eos_token_ids, load_model
from server.engine.pending import PendingSequences
from server.engine.phases import Phases
from server.engine.prompt_features import FeatureBuilder, check_takes_embeds, embeds_width
from server.engine.sampling.guided import GuidedStates, read_tokenizer
from server.engine.sampling.sampler import Sampler
from server.engine.scheduler import Scheduler
from server.engine.step_pace import StepPace
from server.engine.vision import image_encoder
from server.terms.config import EngineConfig, ModelFiles
from server.terms.types import EngineInfo

logger = logging.getLogger(__name__)

_BATCHED_TOKENS = 2048
_MOST_TRIALS = 2
"""The most grammars that are tried at once. Each takes a processor and memory for a while."""


def build_core(
    files: ModelFiles, config: EngineConfig, phases: Phases, wake: Callable[[], None] = lambda: None
) -> tuple[EngineCore, EngineInfo]:
    """Loads the model and builds its engine core. The core calls `wake` when a grammar is compiled.

    Raises:
        EngineStartError: the model cannot be loaded or does not fit into memory.
    """
    with phases.span("load_weights"):
        model = load_model(files.path, config)
    with phases.span("read_limits"):
        max_model_len = derive_max_model_len(model.config, config)
        eos_token_ids = find_eos_token_ids(model, files.path, files.tokenizer_path)
    if config.enable_prompt_embeds:
        with phases.span("check_prompt_embeds"):
            check_takes_embeds(model)
    with phases.span("choose_runner"):
        runner, shapes = _choose_runner(model)
    batched = config.max_num_batched_tokens or _BATCHED_TOKENS
    with phases.span("allocate_kv_cache"):
        working = NO_WORKING_MEMORY  # on a CPU, the cache leaves enough memory free
        if model.device.type != "cpu":
            working = estimate_working_memory(
                model.config, num_tokens=batched, num_sequences=config.max_num_seqs, dtype=model.dtype
            )
        size = size_cache(
            shapes,
            config,
            max_model_len=max_model_len,
            dtype=model.dtype,
            device=model.device,
            working=working,
        )
        cache = _build_cache(runner, shapes, size, model, config)
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    guided = GuidedStates(
        tokenizer=read_tokenizer(files.tokenizer_path, vocab_size=vocab_size, eos_token_ids=eos_token_ids),
        executor=ThreadPoolExecutor((usable_count() + 1) // 2, thread_name_prefix="engine-grammar"),
        trial_executor=ThreadPoolExecutor(
            min(_MOST_TRIALS, (usable_count() + 1) // 2), thread_name_prefix="engine-trial"
        ),
        wake=wake,
    )
    scheduler = Scheduler(
        cache,
        max_num_batched_tokens=batched if runner.can_split_prompts else size.slot_len,
        pace=StepPace() if runner.can_split_prompts else None,
    )
    limits = PromptLimits(min(size.slot_len, cache.max_tokens), vocab_size)
    features = FeatureBuilder(
        model,
        image_encoder(model) if isinstance(runner, PackedRunner) else None,
        has_prefix_cache=cache.has_prefixes,
    )
    core = EngineCore(
        runner,
        pending=PendingSequences(scheduler, limits=limits, guided=guided, features=features),
        scheduler=scheduler,
        sampler=Sampler(
            eos_token_ids=eos_token_ids,
            max_model_len=limits.max_model_len,
            seed=config.seed,
            device=model.device,
            guided=guided,
        ),
    )
    info = EngineInfo(
        model_type=model.config.model_type,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        max_model_len=size.slot_len,
        vocab_size=vocab_size,
        num_slots=size.num_slots,
        kv_cache_tokens=size.num_tokens,
        kv_cache_bytes=size.num_bytes,
        runner=runner.name,
        spans=phases.spans,
        embeds_width=embeds_width(model) if config.enable_prompt_embeds else None,
        has_prefix_cache=cache.has_prefixes,
    )
    return core, info


def _choose_runner(model: PreTrainedModel) -> tuple[PackedRunner | SequentialRunner, dict[int, LayerShape]]:
    """Returns the runner for the model, and the shapes of the keys and values that each layer stores."""
    packed = PackedRunner(model)
    try:
        shapes = packed.probe()
    except UnsupportedAttentionError as err:
        logger.warning("running one sequence at a time: %s", err)
        return SequentialRunner(model), _guess_shapes(model)
    multiply_in_float32(model)
    return packed, shapes


def _build_cache(
    runner: PackedRunner | SequentialRunner,
    shapes: dict[int, LayerShape],
    size: CacheSize,
    model: PreTrainedModel,
    config: EngineConfig,
) -> CacheManager:
    if not isinstance(runner, PackedRunner):
        return CacheManager(num_slots=size.num_slots, max_tokens=size.num_tokens)
    kv_cache = KVCache(shapes, num_slots=size.num_slots, slot_len=size.slot_len, dtype=model.dtype, device=model.device)
    runner.use_cache(kv_cache)
    prefixes = None
    if config.enable_prefix_caching:
        prefixes = PrefixCache(kv_cache.slots, max_tokens=int(size.num_tokens * PREFIX_SHARE))
    return CacheManager(num_slots=size.num_slots, max_tokens=size.num_tokens, kv_cache=kv_cache, prefixes=prefixes)


def _guess_shapes(model: PreTrainedModel) -> dict[int, LayerShape]:
    """Returns the largest possible shapes, for models without a probe: all heads have keys and values."""
    text = model.config.get_text_config(decoder=True)
    heads = getattr(text, "num_attention_heads", None) or 1
    dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return {layer: LayerShape(heads, dim, dim) for layer in range(text.num_hidden_layers)}


def use_threads(num_threads: int) -> None:
    """Sets the number of threads that torch's kernels use."""
    torch.set_num_threads(num_threads)
