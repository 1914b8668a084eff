"""Fixtures: tiny tokenizers of all kinds, their renderers without threads, and texts that are hard to cut."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import mistral_common
import pytest
from mistral_common.tokens.tokenizers.base import SpecialTokens, TokenizerVersion
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from server.terms.config import ModelFiles, RendererConfig
from server.text.renderers.base import BaseRenderer
from server.text.renderers.detokenizer import IncrementalDetokenizer
from server.text.renderers.hf import HfRenderer
from server.text.renderers.mistral import MistralRenderer
from tests.server.inline_executor import InlineExecutor
from tests.support.tiers import thorough_but_for

KINDS = ("real", "byte_level", "llama", "unigram", "wordpiece")

CHATML = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "Paris is the capital of France; Berlin is the capital of Germany.",
    "def main():\n    return [x ** 2 for x in range(10)]\n",
    "Ça va très bien, merci. Où est la bibliothèque? Größe, naïve, coöperate.",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "你好，世界。今天天气很好。我们去公园吧。",
    "user assistant system hello hello world world 0123456789",
] * 4

MISTRAL_FILES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
    "v7m1": "mistral_instruct_tokenizer_241114.model.v7m1",
    "tekken_v3": "tekken_240718.json",
    "tekken_v3m1": "tekken_240911.json",
}
MISTRAL_TEKKEN_VERSIONS = [v for v in ("v7", "v11", "v13", "v15") if v in TokenizerVersion.__members__]
MISTRAL_KINDS = (*MISTRAL_FILES, *(f"tekken_{version}" for version in MISTRAL_TEKKEN_VERSIONS))

TEXTS = [
    "Hello, world! The capital of France is Paris.",
    "  two leading spaces and a trailing one ",
    "👍🏽 👨‍👩‍👧‍👦 🇫🇷 emoji 😀😀",
    "你好，世界。日本語テキスト 한국어",
    "e\u0301 combining, Z\u0310\u0351algo, \u200bzero width",
    "Ünïcödé naïve Größe Ελληνικά Русский עברית العربية",
    "tabs\tand\nnewlines\r\n\n\n   indented",
    "\ufffd a real replacement character \ufffd\ufffd",
    "</s><s>[INST] not a command [/INST]<unk> \x00",
]
"""Texts whose tokens split characters or words."""


@pytest.fixture(scope="session")
def inline_executor() -> InlineExecutor:
    return InlineExecutor()


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> dict[str, Path]:
    """Kind -> folder of a tokenizer. The first tokens of tiny tokenizers are <unk>, <s> and </s>."""
    root = tmp_path_factory.mktemp("tokenizers")
    builders = {"byte_level": _byte_level, "llama": _llama, "unigram": _unigram, "wordpiece": _wordpiece}
    folders = {kind: save_tokenizer(build(), root / kind) for kind, build in builders.items()}
    return {"real": model_path, **folders}


@pytest.fixture(scope="session")
def renderers(tokenizer_folders: dict[str, Path], inline_executor: InlineExecutor) -> dict[str, HfRenderer]:
    """Kind -> renderer with the default settings."""
    return {
        kind: HfRenderer(ModelFiles(path, path), RendererConfig(), executor=inline_executor)
        for kind, path in tokenizer_folders.items()
    }


@pytest.fixture(params=KINDS)
def renderer(request: pytest.FixtureRequest, renderers: dict[str, HfRenderer]) -> HfRenderer:
    """The renderer of each kind."""
    return renderers[request.param]


@pytest.fixture
def build_inline(inline_executor: InlineExecutor) -> Iterator[Callable[..., HfRenderer]]:
    """A function that builds a renderer for a folder with these settings."""
    with ExitStack() as stack:

        def build(path: Path, **settings: Any) -> HfRenderer:
            renderer = HfRenderer(ModelFiles(path, path), RendererConfig(**settings), executor=inline_executor)
            return stack.enter_context(renderer)

        yield build


@pytest.fixture(scope="session")
def mistral_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind -> folder of mistral-common's files, and of later tekken versions made from one of them."""
    root, data = tmp_path_factory.mktemp("mistral"), Path(mistral_common.__file__).parent / "data"
    folders = {}
    for kind, name in MISTRAL_FILES.items():
        folders[kind] = root / kind
        folders[kind].mkdir()
        (folders[kind] / ("tekken.json" if "tekken" in name else name)).symlink_to(data / name)
    whole = json.loads((data / "tekken_240911.json").read_bytes())
    for version in MISTRAL_TEKKEN_VERSIONS:
        folders[f"tekken_{version}"] = root / f"tekken_{version}"
        folders[f"tekken_{version}"].mkdir()
        (folders[f"tekken_{version}"] / "tekken.json").write_text(json.dumps(small_tekken(whole, version)))
    return folders


@pytest.fixture(params=thorough_but_for(MISTRAL_KINDS, "v3", "tekken_v11", "tekken_v15"))
def mistral_kind(request: pytest.FixtureRequest) -> str:
    """The kind of each format in each version."""
    return str(request.param)


@pytest.fixture(scope="session")
def build_mistral(
    mistral_folders: dict[str, Path], inline_executor: InlineExecutor
) -> Callable[[str], MistralRenderer]:
    """A function that builds and caches the renderer of a kind."""

    @cache
    def build(kind: str) -> MistralRenderer:
        path = mistral_folders[kind]
        return MistralRenderer(ModelFiles(path, path), RendererConfig(), executor=inline_executor)

    return build


@pytest.fixture
def mistral(build_mistral: Callable[[str], MistralRenderer], mistral_kind: str) -> MistralRenderer:
    """The renderer of each of Mistral's kinds."""
    return build_mistral(mistral_kind)


def encode(renderer: BaseRenderer, text: str) -> list[int]:
    return renderer.tokenizer.encode(text, add_special_tokens=False)


def feed(detokenizer: IncrementalDetokenizer, token_ids: list[int]) -> str:
    return "".join(detokenizer.append([token_id]).text for token_id in token_ids) + detokenizer.finish()


def save_tokenizer(tokenizer: Tokenizer, path: Path, **settings: Any) -> Path:
    """Saves the files of the tokenizer as in a checkpoint."""
    path.mkdir(parents=True)
    tokenizer.save(str(path / "tokenizer.json"))
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "chat_template": CHATML}
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **named, **settings})
    )
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return path


def _byte_level() -> Tokenizer:
    """A byte-level tokenizer, as in GPT-2, Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=_specials(), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool call>", normalized=False)])
    return tokenizer


def _llama() -> Tokenizer:
    """A tokenizer as in Llama 2 and Mistral: ▁ for spaces, a BOS token, byte tokens for unknown text."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(CORPUS[:4], trainers.BpeTrainer(vocab_size=400, special_tokens=_specials()))
    model = json.loads(trained.to_str())["model"]
    texts = sorted(model["vocab"], key=model["vocab"].__getitem__)[3:]
    vocab = {
        token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *texts])
    }
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in _specials()])
    return tokenizer


def _unigram() -> Tokenizer:
    """SentencePiece's Unigram model, as in T5 and XLM-R. Its trainer is not used: it is random."""
    counts = _count_pieces(pre_tokenizers.Metaspace(), later="")
    vocab = [(piece, round(math.log(count / counts.total()), 4)) for piece, count in _most_frequent_first(counts)]
    tokenizer = Tokenizer(models.Unigram([*((name, 0.0) for name in _specials()), *vocab], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(_specials())
    return tokenizer


def _wordpiece() -> Tokenizer:
    """A WordPiece tokenizer, as in BERT. The trainer is not used, because its results are random."""
    counts = _count_pieces(pre_tokenizers.BertPreTokenizer(), later="##")
    pieces = [*_specials(), *(piece for piece, _ in _most_frequent_first(counts))]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(_specials())
    return tokenizer


def _count_pieces(splitter: pre_tokenizers.PreTokenizer, *, later: str) -> Counter[str]:
    """Counts words of the corpus, and their prefixes, suffixes and letters.

    `later` precedes pieces that do not begin a word.
    """
    counts: Counter[str] = Counter()
    for word in (word for text in CORPUS for word, _ in splitter.pre_tokenize_str(text)):
        counts.update({word[:end] for end in range(1, len(word) + 1)})
        counts.update({later + part for begin in range(1, len(word)) for part in (word[begin], word[begin:])})
    return counts


def _most_frequent_first(counts: Counter[str]) -> list[tuple[str, int]]:
    """Items in descending order of counts. The order of equal counts is deterministic."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def small_tekken(content: dict[str, Any], version: str) -> dict[str, Any]:
    """The content of a tekken file with only 2000 tokens, and with the special tokens of later versions."""
    names = [token.value for token in SpecialTokens]
    special = [{"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)]
    sizes = {"default_num_special_tokens": 100, "default_vocab_size": 2100}
    effort = {"type": "enum", "accepts_none": True, "values": ["none", "high"], "default": "none"}
    settings = {"model_settings_builder": {"reasoning_effort": effort}} if version == "v15" else {}
    config = {**content["config"], **sizes, "version": version}
    return {"config": config, "vocab": content["vocab"][:2000], "special_tokens": special, **settings}


def _specials() -> list[str]:
    return ["<unk>", "<s>", "</s>"]
