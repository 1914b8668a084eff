"""Loads a causal LM of transformers from a folder. Missing or corrupt weights are an error."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from base.errors import EngineMemoryError, EngineStartError
from base.wording import one_line
from server.terms.config import EngineConfig
from server.text.model_files import VISION_MODEL_TYPES, read_object

logger = logging.getLogger(__name__)


_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "n_ctx")
DEFAULT_MAX_MODEL_LEN = 2048
_NOT_GENERATIVE = (
    "ForMaskedLM",
    "ForPreTraining",
    "ForQuestionAnswering",
    "ForSequenceClassification",
    "ForTokenClassification",
)
_MAX_MESSAGE = 400


class _AddedToken(msgspec.Struct):
    id: int
    content: str


class _TokenizerFile(msgspec.Struct):
    """The needed part of tokenizer.json. The decoder skips megabytes of vocabulary."""

    added_tokens: list[_AddedToken] = []


def load_model(path: Path, config: EngineConfig) -> PreTrainedModel:
    """Loads the model in evaluation mode, on the GPU if there is one, else on the CPU.

    Raises:
        EngineStartError: the folder has a fault, which the message names in one line.
    """
    model_config = load_config(path, config)
    _check_generates(model_config, path)
    accepts_images = model_config.model_type in VISION_MODEL_TYPES
    return load_weights(
        AutoModelForImageTextToText if accepts_images else AutoModelForCausalLM, path, config, model_config
    )


def load_weights(
    auto_class: Any, path: Path, config: EngineConfig, model_config: PreTrainedConfig, **options: Any
) -> PreTrainedModel:
    """Loads the folder's weights into the class that `auto_class` of transformers selects.

    Args:
        options: further arguments for the model's constructor.

    Raises:
        EngineStartError: tensors are missing, corrupt or of another shape, or do not fit on the device.
    """
    dtype = "auto" if config.dtype == "auto" else getattr(torch, config.dtype)
    device = choose_device()
    try:
        # No tensor may be missing, so none needs random values. Initialising would import sympy.
        with _quiet_transformers(), no_init_weights(), _views_without_reading():
            model, info = auto_class.from_pretrained(
                path,
                config=model_config,
                dtype=dtype,
                trust_remote_code=config.trust_remote_code,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
    except Exception as err:
        raise EngineStartError(f"cannot load the weights in {path}: {describe_error(err)}") from err
    _check_complete(info, path)
    model = move_model(model, device)
    return model.eval() if model.training else model


def load_config(path: Path, config: EngineConfig) -> PreTrainedConfig:
    """Returns the model's configuration, changed by the entries of `--hf-overrides`.

    Raises:
        EngineStartError: config.json is unreadable or names an unknown architecture.
    """
    try:
        loaded = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code, local_files_only=True)
    except Exception as err:
        if not config.trust_remote_code and _needs_own_code(path):
            raise EngineStartError(
                f"the model in {path} runs code of its own (auto_map in config.json): "
                "start with --trust-remote-code if you trust it"
            ) from err
        raise EngineStartError(f"cannot read the model's configuration in {path}: {describe_error(err)}") from err
    _override(loaded, config.hf_overrides)
    return loaded


def _needs_own_code(path: Path) -> bool:
    """Whether only the model's own code has the class of its configuration."""
    content = read_object(path / "config.json")
    has_own = "AutoConfig" in (content.get("auto_map") or ())
    return has_own and str(content.get("model_type")) not in CONFIG_MAPPING


def _override(model_config: PreTrainedConfig, entries: dict[str, Any]) -> None:
    """Sets entries of a configuration. In inner configurations and dictionaries, other entries stay."""
    for key, value in entries.items():
        current = getattr(model_config, key, None)
        if isinstance(value, dict) and isinstance(current, PreTrainedConfig):
            _override(current, value)
        elif isinstance(value, dict) and isinstance(current, dict):
            setattr(model_config, key, current | value)
        else:
            setattr(model_config, key, value)


def derive_max_model_len(model_config: PreTrainedConfig, config: EngineConfig, own: int | None = None) -> int:
    """Returns the configured maximum length in tokens, or else `own`, the longest that the model supports.

    The user may allow longer sequences for a model with RoPE, which computes any position. Other models
    have a position table of fixed length.

    Raises:
        EngineStartError: the configured length is more than the model supports, and not allowed.
    """
    wanted, own = config.max_model_len, own or own_max_model_len(model_config)
    if wanted is None or own is None or wanted <= own:
        return wanted or own or DEFAULT_MAX_MODEL_LEN
    excess = f"--max-model-len {wanted} is more than the model's own limit of {own} tokens (config.json)"
    if not getattr(model_config.get_text_config(decoder=True), "rope_parameters", None):
        raise EngineStartError(f"{excess}, which has no further positions")
    if not config.allow_long_max_model_len:
        raise EngineStartError(f"{excess}: give at most {own}, or set VLLM_ALLOW_LONG_MAX_MODEL_LEN=1")
    logger.warning("%s: the model was not trained for it, so answers beyond that may be wrong", excess)
    return wanted


def own_max_model_len(model_config: PreTrainedConfig) -> int | None:
    """The longest sequence that the model supports, in tokens. None if its configuration has no limit."""
    text = model_config.get_text_config(decoder=True)
    values = [getattr(text, key, None) for key in _LENGTH_KEYS]
    return min((value for value in values if isinstance(value, int) and value > 0), default=None)


def find_eos_token_ids(model: PreTrainedModel, path: Path, tokenizer_path: Path) -> tuple[int, ...]:
    """Returns the end-of-sequence tokens of tokenizer, generation_config.json and config.json, in this order.

    Raises:
        EngineStartError: generation_config.json is unreadable.
    """
    tokenizer_eos = _tokenizer_eos(tokenizer_path)
    found = [] if tokenizer_eos is None else [tokenizer_eos]
    sources: list[Any] = [model.config.get_text_config(decoder=True)]
    if (path / "generation_config.json").exists():
        try:
            sources.insert(0, GenerationConfig.from_pretrained(path, local_files_only=True))
        except Exception as err:
            raise EngineStartError(f"cannot read generation_config.json: {describe_error(err)}") from err
    for source in sources:
        ids = getattr(source, "eos_token_id", None)
        found.extend([ids] if isinstance(ids, int) else ids or [])
    return tuple(dict.fromkeys(found))


def _tokenizer_eos(path: Path) -> int | None:
    try:
        added_tokens = msgspec.json.decode((path / "tokenizer.json").read_bytes(), type=_TokenizerFile).added_tokens
    except (OSError, ValueError):
        return None
    token = read_object(path / "tokenizer_config.json").get("eos_token")
    content = token.get("content") if isinstance(token, dict) else token
    return next((t.id for t in added_tokens if t.content == content), None)


def _check_generates(model_config: PreTrainedConfig, path: Path) -> None:
    """Rejects encoders. transformers loads some encoders as causal LMs, but their output has no meaning."""
    names = model_config.architectures or []
    if model_config.is_encoder_decoder or (names and all(name.endswith(_NOT_GENERATIVE) for name in names)):
        what = ", ".join(names) or model_config.model_type
        raise EngineStartError(f"the model in {path} is not a causal language model: config.json names {what}")


def _check_complete(info: dict[str, Any], path: Path) -> None:
    missing = sorted(info["missing_keys"])
    if missing:
        names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise EngineStartError(f"the weights in {path} lack {len(missing)} of the model's tensors: {names}")
    for name, found, wanted in sorted(info["mismatched_keys"]):
        raise EngineStartError(
            f"the weights in {path} do not fit config.json: {name} is {list(found)} instead of {list(wanted)}"
        )


@contextmanager
def _views_without_reading() -> Iterator[None]:
    """Within the block, `torch.asarray` creates safetensors' views of a mapped file without reading the file.

    torch's own function reads the first byte, although the tensor does not depend on it. If the page cache
    lacks this byte, the read waits for the disk. These reads take 2 s for 182 tensors of 2.6 GB.
    """
    original = torch.asarray

    def asarray(data: Any, **options: Any) -> torch.Tensor:
        if isinstance(data, torch.UntypedStorage) and options == {"dtype": torch.uint8}:
            return torch.empty(0, dtype=torch.uint8).set_(data)
        return original(data, **options)

    torch.asarray = asarray  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.asarray = original


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Within the block, hides transformers' progress bar and its table of missing or unexpected keys."""
    before = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def describe_error(err: BaseException) -> str:
    """The error's type and message in one line."""
    text = " ".join(str(err).split())
    return f"{type(err).__name__}: {text[:_MAX_MESSAGE] + '…' if len(text) > _MAX_MESSAGE else text}"


_GPU_DEVICE = Path("/dev/nvidiactl")
_GIB = 1 << 30


def choose_device() -> torch.device:
    """Returns the GPU if there is one, or else the CPU.

    Called only in the engine process, after the fork, because it creates the CUDA context, which a forked
    child could not use.

    Raises:
        EngineStartError: there is a GPU, but CUDA cannot use it.
    """
    if not torch.cuda.is_available():
        if _GPU_DEVICE.exists() and not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
            logger.warning("there is a GPU, but torch %s cannot use it: computing on the CPU", torch.__version__)
        return torch.device("cpu")
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.mem_get_info()
    except RuntimeError as err:
        raise EngineStartError(
            f"there is a GPU, but CUDA cannot use it ({one_line(err)}): repair the driver, or start "
            "with CUDA_VISIBLE_DEVICES set to nothing to compute on the CPU"
        ) from err
    # torch prefers cuDNN's attention on recent GPUs. It makes a plan for every new length, which takes up to
    # hundreds of milliseconds, and lengths grow with every token.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device("cuda", torch.cuda.current_device())


def move_model(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Moves the model to the device.

    Raises:
        EngineMemoryError: the device has no room for the model.
    """
    if device.type != "cuda":
        is_there = all(tensor.device == device for tensor in (*model.parameters(), *model.buffers()))
        return model if is_there else model.to(device)
    needed = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    free, total = torch.cuda.mem_get_info(device)
    if needed > free:
        raise EngineMemoryError(describe_lack("the weights take", needed, free, total))
    try:
        return model.to(device)
    except torch.OutOfMemoryError as err:
        raise EngineMemoryError(describe_lack("the weights take", needed, free, total)) from err


def describe_lack(what: str, needed: int, free: int, total: int) -> str:
    """Describes a lack of memory in one line, with the sizes and possible remedies."""
    return (
        f"{what} {needed / _GIB:.3g} GiB, and {free / _GIB:.3g} of the GPU's {total / _GIB:.3g} GiB are free: "
        "stop other processes on it (nvidia-smi lists them), choose another with CUDA_VISIBLE_DEVICES, or use a "
        "smaller or quantized model"
    )
