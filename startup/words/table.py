"""All flags of `serve` by name, also those without effect in the embedded engine, and those it refuses."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Final, NamedTuple

from envs.redaction import is_secret_flag
from envs.replacements import REPLACEMENTS
from envs.suggestion import did_you_mean
from startup.settings.flag import Flag, opposites_of
from startup.settings.serve_words import Given, cut, normalise, with_values
from startup.words.errors import InputError
from startup.words.supported import SUPPORTED


def _flags(table: str) -> tuple[Flag, ...]:
    """Reads the flags from a table. An entry looks like a word of a command line: `--name,-alias=neutral`.

    The values after `=`, separated by `|`, change nothing. A flag with `+=` takes several values. A flag
    without `=` is a switch that is off by default. A flag with `=on` is a switch that is on by default.
    """
    return tuple(map(_flag, table.split()))


def _flag(text: str) -> Flag:
    names, has_value, neutral = text.partition("=")
    all_names = tuple(names.removesuffix("+").split(","))
    if not has_value or neutral == "on":
        off = opposites_of(*all_names)
        return Flag(all_names, nargs=0, opposites=off, neutral=("true" if has_value else "false",))
    nargs = "+" if names.endswith("+") else 1
    return Flag(all_names, nargs=nargs, neutral=tuple(filter(None, neutral.split("|"))))


IGNORED: Final[dict[str, tuple[Flag, ...]]] = {
    "torch and transformers choose the kernels": _flags("""
        --enforce-eager --optimization-level=2 --compilation-config,-cc= --cudagraph-capture-sizes+=
        --max-cudagraph-capture-size= --attention-backend= --attention-config,-ac= --kernel-config=
        --ir-op-priority= --enable-flashinfer-autotune --moe-backend=auto --linear-backend=auto
        --sparse-indexer-topk-backend=auto --gdn-prefill-backend= --kda-prefill-backend= --kda-decode-backend=
        --mamba-backend=triton --mamba-ssu-algorithm= --mamba-cache-philox-rounds=0
        --enable-mamba-cache-stochastic-rounding --use-replayssm --replayssm-buffer-len=16 --disable-cascade-attn
        --disable-custom-all-reduce --enable-cumem-allocator --performance-mode=balanced --use-fp64-gumbel
        --specialize-active-lora --jit-monitor-mode=warn --jit-monitor-verbose --monokernel
    """),
    "the embedded scheduler and its KV cache do not need this setting": _flags("""
        --enable-chunked-prefill --async-scheduling --long-prefill-token-threshold=0
        --long-prefill-token-threshold-adaptive --max-num-scheduled-tokens= --scheduler-reserve-full-isl=on
        --watermark=0.0 --prefill-schedule-interval=1 --disable-hybrid-kv-cache-manager --disable-chunked-mm-input
        --stream-interval=1 --block-size= --prefix-caching-hash-algo=sha256 --prefix-cache-retention-interval=0
        --prefix-match-unit= --kv-sharing-fast-prefill --swa-bounded-replay=on --mamba-cache-dtype=auto
        --mamba-ssm-cache-dtype=auto --mamba-block-size= --mamba-cache-mode=none
        --enable-mamba-shared-prefix-checkpoint --structured-outputs-config=
    """),
    "weights are always loaded directly from the files": _flags("""
        --safetensors-load-strategy= --safetensors-prefetch-num-threads=8 --safetensors-prefetch-block-size=16777216
        --use-tqdm-on-load=on --max-parallel-loading-workers= --ignore-patterns+=original/**/*
        --pt-load-map-location=cpu --enable-ep-weight-filter
    """),
    "there is one server process and one engine process": _flags("""
        --api-server-count,-asc=1 --aggregate-engine-logging --fully-sharded-loras --numa-bind --numa-bind-nodes+=
        --numa-bind-cpus+= --enable-expert-parallel,-ep --disable-nccl-for-dp-synchronization
        --enable-shm-tensor-arena
    """),
    "late-interaction scores are computed in the API process": _flags("--enable-flash-late-interaction=on"),
    "the embedded server logs and exports the same either way": _flags("""
        --watchdog-config= --enable-log-outputs --enable-log-deltas=on --max-log-len= --log-error-stack
        --show-hidden-metrics-for-version= --kv-cache-metrics --kv-cache-metrics-sample=0.01 --cudagraph-metrics
        --enable-mfu-metrics --enable-logging-iteration-details --enable-layerwise-nvtx-tracing
        --per-request-spec-decode-metrics=none --fail-on-environ-validation --enable-server-load-tracking
        --fingerprint-mode=full --fingerprint-value=
    """),
    "the embedded server has no such endpoint or parser": _flags("""
        --enable-tokenizer-info-endpoint --disable-fastapi-docs --enable-offline-docs --cohere-is-reasoning-model=on
        --cohere-format=cmd4
    """),
    "the embedded server accepts text and images, and always processes images the same way": _flags("""
        --language-model-only --media-io-kwargs={} --mm-processor-cache-type=lru --mm-hasher-algorithm=blake3
        --mm-shm-cache-max-object-size-mb=128 --mm-encoder-tp-mode=weights --mm-encoder-attn-backend=
        --mm-encoder-attn-dtype= --mm-encoder-fp8-scale-path= --mm-encoder-fp8-scale-save-path=
        --mm-encoder-fp8-scale-save-margin=1.5 --interleave-mm-strings --skip-mm-profiling --video-pruning-rate=
        --video-pruning-method=evs --mm-tensor-ipc=direct_rpc --mm-processor-device=auto --mm-ipc-gpu-memory-gb=0
        --mm-device-do-normalize --ec-manager-config=
    """),
}
"""A reason -> the flags that change nothing in the embedded engine for this reason."""


REJECTED: Final[dict[str, tuple[Flag, ...]]] = {
    "several devices, processes or nodes": _flags("""
        --tensor-parallel-size,-tp=1 --pipeline-parallel-size,-pp=1 --distributed-executor-backend=mp|uni
        --nnodes,-n=1 --node-rank,-r=0 --master-addr=127.0.0.1 --master-port=29501 --distributed-timeout-seconds=
        --cpu-distributed-timeout-seconds= --device-ids= --decode-context-parallel-size,-dcp=1 --dcp-comm-backend=
        --dcp-q-replicate --dcp-kv-cache-interleave-size=1 --cp-kv-cache-interleave-size=
        --prefill-context-parallel-size,-pcp=1 --data-parallel-size,-dp=1 --data-parallel-rank,-dpn=
        --data-parallel-start-rank,-dpr= --data-parallel-size-local,-dpl= --data-parallel-address,-dpa=
        --data-parallel-rpc-port,-dpp= --data-parallel-backend,-dpb=mp --data-parallel-hybrid-lb,-dph
        --data-parallel-external-lb,-dpe --data-parallel-multi-port-external-lb,-dpm
        --data-parallel-supervisor-port=9256 --dp-supervisor-probe-interval-s=5.0
        --dp-supervisor-probe-timeout-s=5.0 --dp-supervisor-probe-failure-threshold=3 --enable-hc-sp
        --enable-batch-sharded-sampling --all2all-backend=allgather_reducescatter --enable-dbo --ubatch-size=0
        --enable-elastic-ep --elastic-ep-max-dp-size= --dbo-decode-token-threshold=32 --dp-sync-interval=16
        --dbo-prefill-token-threshold=512 --enable-eplb --eplb-config={} --expert-placement-strategy=linear
        --ray-workers-use-nsight --enable-fault-tolerance --fault-tolerance-config={} --enable-nccl-comm-suspend
        --headless
    """),
    "LoRA adapters": _flags("""
        --enable-lora --max-loras=1 --max-lora-rank=16 --max-cpu-loras= --lora-dtype=auto --lora-modules+=
        --enable-tower-connector-lora --lora-target-modules+= --default-mm-loras= --enable-mixed-moe-lora-format
        --enable-moe-shared-loras --max-lora-cls-labels=
    """),
    "speculative or diffusion decoding": _flags("""
        --speculative-config,-sc= --spec-method= --spec-model= --spec-tokens= --diffusion-config,-dc=
    """),
    "quantized weights, which `llama-server` has for GGUF files": _flags("--quantization,-q="),
    "quantized weights or caches": _flags("""
        --quantization-config= --allow-deprecated-quantization --kv-cache-dtype=auto --kv-cache-dtype-skip-layers+=
    """),
    "models of the package vllm-omni": _flags("--omni"),
    "chat templates in requests": _flags("--trust-request-chat-template"),
    "settings of images in requests": _flags("--trust-request-mm-kwargs"),
    "other roles of answers": _flags("--response-role=assistant"),
    "parsers of tool calls or of reasoning": _flags("""
        --tool-strict-level=auto --tool-server= --tool-parser-plugin= --reasoning-parser-plugin=
        --reasoning-effort-map=
    """),
    "offloaded or transferred weights and caches": _flags("""
        --kv-transfer-config= --kv-events-config= --ec-transfer-config= --kv-offloading-size=
        --kv-offloading-backend=native --offload-backend=auto --cpu-offload-gb=0 --cpu-offload-params+=
        --offload-group-size=0 --offload-num-in-group=1 --offload-prefetch-step=1 --offload-params+=
        --engram-config= --weight-transfer-config= --num-gpu-blocks-override=
    """),
    "sleep levels": _flags("""
        --enable-sleep-mode --sleep-mode-offload-cudagraph --sleep-mode-backend=cumem
        --sleep-preserve-parameter-names+=
    """),
    "another protocol, endpoint or middleware": _flags("""
        --middleware= --enable-scale-out --tokens-only --grpc --grpc-port= --sse-keep-alive-interval=0
        --enable-per-request-metrics
    """),
    "another way of loading or running a model": _flags("""
        --tokenizer-revision= --code-revision= --skip-tokenizer-init --hf-config-path= --config-format=auto|hf
        --model-class-overrides={} --model-impl=auto|transformers --load-format=auto|safetensors
        --model-loader-extra-config={} --logits-processors+= --io-processor-plugin= --worker-cls=auto
        --worker-extension-cls= --disable-sliding-window --enable-mm-embeds --mm-encoder-only --additional-config={}
    """),
    "other outputs of the model": _flags("""
        --logprobs-mode=raw_logprobs --enable-return-routed-experts --return-sampling-mask --enable-trace-replay
        --aux-output-config= --watermark-config=
    """),
    "another scheduler": _flags("--scheduler-cls= --scheduling-policy=fcfs --max-num-active-seqs="),
    "traces, profiles or another logging configuration": _flags("""
        --otlp-traces-endpoint= --collect-detailed-traces+= --profiler-config= --custom-histogram-buckets=
        --logging-config=
    """),
}
"""A feature that the embedded engine lacks -> the flags that request the feature."""


class Spelling(NamedTuple):
    """A flag that a word of the command line stands for, and whether the word negates it."""

    flag: Flag
    is_negated: bool


IGNORE_REASONS: Final = {flag: reason for reason, flags in IGNORED.items() for flag in flags}
"""An ignored flag -> the reason why it changes nothing."""

REJECTED_FEATURES: Final = {flag: feature for feature, flags in REJECTED.items() for flag in flags}
"""A rejected flag -> the feature that it requests."""

FLAGS: Final[tuple[Flag, ...]] = (*SUPPORTED, *IGNORE_REASONS, *REJECTED_FEATURES)

_MAX_SHOWN: Final = 5

_BY_NAME: Final = {option: Spelling(flag, option in flag.opposites) for flag in FLAGS for option in flag.options}


def find_flag(name: str) -> Spelling:
    """The flag with this name or unique abbreviation. Raises a usage error with a suggestion."""
    return _BY_NAME.get(normalise(name)) or _complete(name)


def find_known_flag(name: str) -> Flag | None:
    """The flag with this name or unique abbreviation. None if there is no such flag."""
    try:
        return find_flag(name).flag
    except InputError:  # the abbreviation may be ambiguous only here, not among vLLM's flags
        return next((f for f in SUPPORTED if f.is_secret and is_secret_flag(name) and f.name.startswith(name)), None)


def split_flags(words: Iterable[str]) -> Iterator[Given]:
    """Splits a command line by all flags of this program, and names them (`Given.known`)."""
    return with_flags(cut(words))


def with_flags(pieces: Sequence[Given]) -> Iterator[Given]:
    """Yields the flags of a command line with their values, and names them (`Given.known`)."""
    find = cache(find_known_flag)

    def num_values(name: str) -> int | str | None:
        flag = find(name)
        return flag.nargs if flag else None

    for given in with_values(pieces, num_values):
        given.known = find(given.flag) if given.flag else None
        yield given


def _complete(name: str) -> Spelling:
    """Completes a name as argparse does."""
    whole = normalise(name)
    may_complete = name.startswith("--") and whole not in REPLACEMENTS
    names = [known for known in _BY_NAME if known.startswith(whole)] if may_complete else []
    if not names:
        raise InputError(f"No such option: {name}{did_you_mean(whole, _BY_NAME)}")
    meanings = [_BY_NAME[known] for known in names]
    if any(meaning != meanings[0] for meaning in meanings):
        shown = ", ".join(names[:_MAX_SHOWN]) + (", ..." if len(names) > _MAX_SHOWN else "")
        raise InputError(f"Option {name} is ambiguous: {shown}")
    return meanings[0]
