"""Loads a tokenizer, and avoids importing torch where the result is the same as AutoTokenizer's.

AutoTokenizer imports torch (1.5 s) only to choose a class. For the language models in the tables below, two
JSON files determine the class. The tables repeat transformers' registrations and overrides. A test compares
every row with AutoTokenizer.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import transformers
from tokenizers import AddedToken, Tokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from base.machine.file_stamps import FolderStamps, read_folder
from base.wording import one_line
from server.text.model_files import TokenizerLoadError, read_json_object

_LEGACY_FILES = ("special_tokens_map.json", "added_tokens.json")
"""If a folder has one of these files, transformers merges added tokens from several files."""
_GENERIC = "TokenizersBackend"
"""The class that uses tokenizer.json unchanged."""

_LIGHT_CLASSES = (
    *("BertTokenizer", "CohereTokenizer", "GPT2Tokenizer", "GPTNeoXTokenizer", "GemmaTokenizer", "LlamaTokenizer"),
    *("Qwen2Tokenizer", "Qwen3_5Tokenizer", "RobertaTokenizer", "XLMRobertaTokenizer"),
)
"""Tokenizer classes whose modules do not import torch."""

_DEFAULT_CLASS = {
    **dict.fromkeys(("bert", "distilbert", "electra"), "BertTokenizer"),
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    **dict.fromkeys(("cohere", "cohere2"), "CohereTokenizer"),
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "opt", "phi", "starcoder2"), "GPT2Tokenizer"),
    **dict.fromkeys(("gpt_neox", "mamba", "mpt", "olmo", "olmoe"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(("qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next"), "Qwen2Tokenizer"),
    "qwen3_5_text": "Qwen3_5Tokenizer",
    **dict.fromkeys(("llama", "llama4_text", "falcon", "bloom", "smollm3", "gpt_oss", "exaone4", "lfm2"), _GENERIC),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "deepseek_v32"), _GENERIC),
}
"""Model type -> the class for a checkpoint that names no class."""

_VERSION_DEPENDENT = ("deepseek_v2", "deepseek_v3", "deepseek_v32")
"""For these model types, transformers 5.19 ignores the class that a checkpoint names, but 5.23 uses it.

Checkpoints of these types name LlamaTokenizer and have a byte-level tokenizer.json. With such a file, both
versions choose the generic class.
"""

_FIXED_CLASS: dict[str, str | None] = {
    "qwen2": "Qwen2Tokenizer",
    "hyperclovax_vision_v2": "GPT2Tokenizer",
    "modernbert": _GENERIC,
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen4_exp"), "Qwen3_5Tokenizer"),
    **dict.fromkeys(("nemotron", "internlm2", "minicpm3", "phi3", "phimoe"), _GENERIC),
    **dict.fromkeys(("glm", "glm4", "glm4_moe", "gpt_bigcode", "granite", "granitemoe", "olmo2", "olmo3"), _GENERIC),
    **dict.fromkeys(("mistral", "mixtral", "ministral", "stablelm"), _GENERIC),
    "siglip2": None,
}
"""Model type -> the class to use. Many checkpoints of these types name a wrong class.

None means that only AutoTokenizer can choose the class.
"""

_cached: dict[Path, tuple[FolderStamps, PreTrainedTokenizerBase]] = {}
"""Folder -> tokenizer that was loaded in advance. A forked server finds the tokenizer of its model here."""


class VocabularyFacts(NamedTuple):
    """The size of a vocabulary, and the length of its longest token."""

    size: int
    """The highest token id, plus one."""
    max_token_chars: int


def load_tokenizer(path: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Loads a folder's tokenizer, or returns the kept one. May import torch: call this on the main thread.

    Raises:
        TokenizerLoadError: the tokenizer is missing or broken.
    """
    if not trust_remote_code and (cached := _take_cached(path)) is not None:
        return cached
    if not path.is_dir():
        raise TokenizerLoadError(f"no tokenizer at {path}: there is no such folder")
    class_name = _light_class(path)
    try:
        if class_name is not None:
            return _load_light(class_name, path)
        auto: Any = transformers.AutoTokenizer
        # By default, AutoTokenizer would prefer a tekken.json.
        return auto.from_pretrained(path, trust_remote_code=trust_remote_code, mistral_format=False)
    except Exception as err:  # the tokenizers library raises plain Exception for a corrupt file
        raise TokenizerLoadError(f"cannot load the tokenizer in {path}: {one_line(err)}") from err


def keep_tokenizer(path: Path) -> None:
    """Loads the tokenizer and keeps it for `load_tokenizer` in this process or its forks. Starts no thread.

    Raises:
        TokenizerLoadError: the tokenizer is missing or broken.
    """
    stamps = read_folder(path)  # before loading, because any of the files may influence the tokenizer
    tokenizer = load_tokenizer(path)
    measure_vocabulary(tokenizer)
    _cached[path.resolve()] = (stamps, tokenizer)


@lru_cache
def measure_vocabulary(tokenizer: PreTrainedTokenizerBase) -> VocabularyFacts:
    """Measures a vocabulary. Takes 20 ms for 50,000 tokens. The result is cached for each tokenizer."""
    vocab: dict[str, int] = tokenizer.get_vocab()
    last_id = max([*vocab.values(), *tokenizer.added_tokens_decoder])
    return VocabularyFacts(size=last_id + 1, max_token_chars=max(map(len, vocab)))


def _take_cached(path: Path) -> PreTrainedTokenizerBase | None:
    """Removes and returns the kept tokenizer, which its user changes. None if the folder has changed."""
    stamps, tokenizer = _cached.pop(path.resolve(), (None, None)) if _cached else (None, None)
    if tokenizer is None or stamps != read_folder(path):
        return None
    return tokenizer


def _load_light(class_name: str, path: Path) -> PreTrainedTokenizerBase:
    if class_name == "LlamaTokenizer":
        # DeepSeek's coder and R1-Distill-Llama name LlamaTokenizer, but have a byte-level tokenizer.json.
        # That class would drop every space. AutoTokenizer recognises them by hub id. A folder has no id,
        # so here the decoder identifies them.
        generic = _load_generic_tokenizer(path)
        if type(generic.backend_tokenizer.decoder).__name__ == "ByteLevel":
            return generic
    if class_name == _GENERIC:
        return _load_generic_tokenizer(path)
    kind: type[PreTrainedTokenizerBase] = getattr(transformers, class_name)
    return kind.from_pretrained(path)


def _light_class(path: Path) -> str | None:
    """Returns the class that AutoTokenizer would choose. None if only AutoTokenizer can choose the class."""
    if not (path / "tokenizer.json").is_file():
        return None
    named, config = read_json_object(path / "tokenizer_config.json"), read_json_object(path / "config.json")
    if "auto_map" in named or "model_name" in config:
        return None
    model_type = str(config.get("model_type"))
    if model_type in _FIXED_CLASS:
        return _FIXED_CLASS[model_type]
    class_name = str(named.get("tokenizer_class") or config.get("tokenizer_class") or "").removesuffix("Fast")
    if class_name in (_GENERIC, "PreTrainedTokenizer"):
        return _GENERIC
    if model_type in _VERSION_DEPENDENT and class_name not in ("", "LlamaTokenizer"):
        return None
    default = _DEFAULT_CLASS.get(model_type) if config else _GENERIC
    if default is None or not class_name:
        return default
    return class_name if class_name in _LIGHT_CLASSES else None


class _TokenizerFile(msgspec.Struct):
    """The part of tokenizer.json that is needed. Decoding skips the megabytes of vocabulary."""

    added_tokens: list[dict[str, Any]]


_TOKENIZER_FILES: Final = msgspec.json.Decoder(_TokenizerFile)
"""Made once, because msgspec crashes if two renderer threads meet the class at its first use."""


def _load_generic_tokenizer(path: Path) -> TokenizersBackend:
    """Loads the tokenizer in half of the time of `from_pretrained`. Raises transformers' errors.

    `from_pretrained` parses the file twice, the second time in Python for the few added tokens, and then
    copies the tokenizer. A test checks that the result here is the same as AutoTokenizer's.
    """
    options = {} if _has_other_added_tokens(path) else {"added_tokens_decoder": _added_tokens(path)}
    tokenizer: TokenizersBackend = _WithoutCopy.from_pretrained(path, **options)
    tokenizer.__class__ = TokenizersBackend
    return tokenizer


class _WithoutCopy(TokenizersBackend):  # type: ignore[misc]
    @classmethod
    def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:
        converted: dict[str, Any] = super().convert_to_native_format(**kwargs)
        if (backend := converted.get("tokenizer_object")) is not None:
            converted["tokenizer_object"] = _Shared(backend)
        return converted


class _Shared:
    """Holds a backend tokenizer. A deep copy is this tokenizer itself, so transformers copies nothing."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend

    def __deepcopy__(self, memo: dict[int, Any]) -> Tokenizer:
        return self._backend


def _has_other_added_tokens(path: Path) -> bool:
    config = read_json_object(path / "tokenizer_config.json")
    return "added_tokens_decoder" in config or any((path / name).exists() for name in _LEGACY_FILES)


def _added_tokens(path: Path) -> dict[int, AddedToken]:
    file = _TOKENIZER_FILES.decode((path / "tokenizer.json").read_bytes())
    return {token.pop("id"): AddedToken(**token) for token in file.added_tokens}
