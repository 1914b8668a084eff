"""Fixtures: tiny tokenizers of all kinds, their renderers without threads, and texts that are hard to cut."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from server.terms.config import ModelFiles, RendererConfig
from server.text.renderers.detokenizer import IncrementalDetokenizer
from server.text.renderers.renderer import Renderer
from tests.server.inline_executor import InlineExecutor

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
def renderers(tokenizer_folders: dict[str, Path], inline_executor: InlineExecutor) -> dict[str, Renderer]:
    """Kind -> renderer with the default settings."""
    return {
        kind: Renderer(ModelFiles(path, path), RendererConfig(), executor=inline_executor)
        for kind, path in tokenizer_folders.items()
    }


@pytest.fixture(params=KINDS)
def renderer(request: pytest.FixtureRequest, renderers: dict[str, Renderer]) -> Renderer:
    """The renderer of each kind."""
    return renderers[request.param]


@pytest.fixture
def build_inline(inline_executor: InlineExecutor) -> Iterator[Callable[..., Renderer]]:
    """A function that builds a renderer for a folder with these settings."""
    with ExitStack() as stack:

        def build(path: Path, **settings: Any) -> Renderer:
            renderer = Renderer(ModelFiles(path, path), RendererConfig(**settings), executor=inline_executor)
            return stack.enter_context(renderer)

        yield build


def encode(renderer: Renderer, text: str) -> list[int]:
    return renderer.tokenizer.encode(text, add_special_tokens=False)


def feed(detokenizer: IncrementalDetokenizer, token_ids: list[int]) -> str:
    return "".join(detokenizer.append([token_id]).text for token_id in token_ids) + detokenizer.finish()


def save_tokenizer(tokenizer: Tokenizer, path: Path, **settings: Any) -> Path:
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


def _specials() -> list[str]:
    return ["<unk>", "<s>", "</s>"]
