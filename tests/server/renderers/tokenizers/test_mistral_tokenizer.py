"""Mistral's tokenizers, compared with mistral-common itself; incremental decoding; the choice of the file."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy

from server.config import ModelFiles, RendererConfig
from server.errors import RequestError
from server.renderers.detokenizer import MAX_HELD_TOKENS, PromptTail
from server.renderers.mistral import MistralRenderer
from server.renderers.prompts import TextOptions
from server.renderers.tokenizers.files import TokenizerLoadError, find_mistral_file, is_mistral_format
from server.renderers.tokenizers.mistral_tokenizer import MistralTokenizer
from tests.server.inline_executor import InlineExecutor
from tests.server.renderers.detokenizing import TEXTS as COMMON_TEXTS
from tests.server.renderers.detokenizing import feed

Build = Callable[[str], MistralRenderer]

TEXTS = [
    *COMMON_TEXTS,
    "def f(x):\n    return {k: v ** 2 for k, v in x.items()}",
    "</s><s>[INST] not a command [/INST]<unk>",
    "\x00\u200b",
]


def encode(renderer: MistralRenderer, text: str) -> list[int]:
    return renderer.tokenizer.encode(text, add_special_tokens=False)


def decode(renderer: MistralRenderer, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
    return renderer.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)


def named(renderer: MistralRenderer, name: str) -> int:
    return next(token_id for token_id, token in renderer.tokenizer.added_tokens.items() if token == name)


@pytest.mark.parametrize("text", TEXTS)
def test_text_encodes_and_decodes_as_with_mistral_common(mistral: MistralRenderer, text: str) -> None:
    raw = mistral._mistral.loaded.instruct_tokenizer.tokenizer
    for bos in (True, False):
        expected = raw.encode(text, bos=bos, eos=False)
        prompt = mistral.render_text(text, TextOptions(add_special_tokens=bos))
        assert (prompt.token_ids, prompt.text) == (expected, text)
        assert mistral.detokenize(expected, True) == raw.decode(expected, SpecialTokenPolicy.IGNORE) == text
        assert mistral.detokenize(expected) == "<s>" * bos + text


def test_special_tokens_in_a_text_are_encoded_as_text(mistral: MistralRenderer) -> None:
    assert not set(encode(mistral, "</s><s>[INST][TOOL_CALLS]")) & mistral.tokenizer.added_tokens.keys()


def test_tokens_have_the_bytes_of_the_text(mistral: MistralRenderer, mistral_kind: str) -> None:
    before = "" if "tekken" in mistral_kind else " "
    for text in TEXTS:
        assert b"".join(map(mistral.token_bytes, encode(mistral, text))) == (before + text).encode()


def test_tokenizer_properties(build_mistral: Build, mistral: MistralRenderer) -> None:
    assert mistral.token_bytes(mistral.eos_token_id or 0) == b"</s>"
    assert (build_mistral("v1").vocab_size, build_mistral("v3").vocab_size) == (32000, 32768)
    tekken = build_mistral("tekken_v3")
    assert (tekken.vocab_size, tekken.eos_token_id, len(tekken.tokenizer.added_tokens)) == (131072, 2, 1000)


def test_ids_outside_the_vocabulary_are_rejected(mistral: MistralRenderer) -> None:
    for bad in (-1, mistral.vocab_size, 2**40):
        with pytest.raises(RequestError, match=f"Token id {bad} "):
            mistral.render_text([1, bad], TextOptions())
        with pytest.raises(RequestError, match=f"Token id {bad} "):
            mistral.detokenize([1, bad])


def test_ids_without_a_token_have_no_text(mistral: MistralRenderer) -> None:
    token_ids = encode(mistral, "the of")
    unknown = mistral.vocab_size + 5
    assert feed(mistral.create_detokenizer(), [unknown, token_ids[0], unknown, *token_ids[1:]]) == "the of"
    assert mistral.token_bytes(unknown) == b""


def test_a_lone_surrogate_is_rejected(mistral: MistralRenderer) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        mistral.render_text("a\ud800b", TextOptions())


def test_more_spaces_than_tekken_can_encode_are_rejected(build_mistral: Build) -> None:
    with pytest.raises(RequestError, match="cannot be tokenized"):
        build_mistral("tekken_v3").render_text("x" + " " * 1_100_000 + "x", TextOptions())


def test_truncation_keeps_the_last_tokens_and_the_begin_of_text_token(mistral: MistralRenderer) -> None:
    def rendered(add_special_tokens: bool, limit: int | None) -> list[int]:
        options = TextOptions(add_special_tokens=add_special_tokens, truncate_prompt_tokens=limit)
        return mistral.render_text("the quick brown fox", options).token_ids

    for bos in (True, False):
        whole = rendered(bos, None)
        assert rendered(bos, len(whole)) == rendered(bos, 100) == whole
        assert rendered(bos, 3) == whole[:bos] + whole[-(3 - bos) :]
        assert rendered(bos, 1) == (whole[:1] if bos else whole[-1:])
        with pytest.raises(RequestError, match="no tokens"):
            rendered(bos, 0)


@pytest.mark.thorough
def test_a_text_that_cannot_fit_is_rejected_before_tokenization(
    mistral_folders: dict[str, Path], mistral_kind: str, inline_executor: InlineExecutor
) -> None:
    path = mistral_folders[mistral_kind]
    with MistralRenderer(ModelFiles(path, path), RendererConfig(), executor=inline_executor) as renderer:
        renderer.max_model_len = 8
        ordinary = [i for i in range(renderer.vocab_size) if i not in renderer.tokenizer.added_tokens]
        assert max(len(renderer.token_text(i)) for i in ordinary) <= renderer.tokenizer.max_token_chars
        with pytest.raises(RequestError, match="maximum context length is 8 tokens"):
            renderer.render_text("x" * (8 * renderer.tokenizer.max_token_chars + 1), TextOptions())


def test_bad_words_are_encoded_alone_and_after_a_space(build_mistral: Build) -> None:
    tekken, sentencepiece = build_mistral("tekken_v3"), build_mistral("v3")
    assert tekken.encode_words(["Paris"]) == [encode(tekken, "Paris"), encode(tekken, " Paris")]
    assert sentencepiece.encode_words(["Paris"])[0] == encode(sentencepiece, "Paris")
    with pytest.raises(RequestError, match="bad_words"):
        tekken.encode_words([" "])


@pytest.mark.parametrize("text", TEXTS)
def test_incremental_text_is_the_full_decode(mistral: MistralRenderer, text: str) -> None:
    assert feed(mistral.create_detokenizer(), encode(mistral, text)) == text


@pytest.mark.parametrize("skip_special_tokens", [True, False])
def test_random_tokens_give_the_full_decode(mistral: MistralRenderer, skip_special_tokens: bool) -> None:
    for seed in range(100):
        token_ids = random_tokens(mistral, random.Random(seed), length=40)
        detokenizer = mistral.create_detokenizer(skip_special_tokens=skip_special_tokens)
        expected = decode(mistral, token_ids, skip_special_tokens=skip_special_tokens)
        assert feed(detokenizer, token_ids) == expected, f"seed {seed}"


def test_random_tokens_after_a_prompt_give_the_full_decode(mistral: MistralRenderer) -> None:
    for seed in range(100):
        rng = random.Random(seed)
        prompt = encode(mistral, rng.choice(TEXTS[:4]) * rng.randint(1, 3))
        prompt += [mistral.eos_token_id or 0] * rng.randint(0, 9)
        output = random_tokens(mistral, rng, length=30)
        before, whole = decode(mistral, prompt), decode(mistral, prompt + output)
        assert whole.startswith(before)
        detokenizer = mistral.create_detokenizer(prompt=PromptTail(prompt))
        assert feed(detokenizer, output) == whole[len(before) :], f"seed {seed}"


def test_single_bytes_that_are_not_characters_give_the_full_decode(mistral: MistralRenderer) -> None:
    single_bytes = [token_id for token_id in range(mistral.vocab_size) if len(mistral.token_bytes(token_id)) == 1]
    assert len(single_bytes) > 200
    for seed in range(200):
        token_ids = random.Random(seed).choices(single_bytes, k=60)
        assert feed(mistral.create_detokenizer(), token_ids) == decode(mistral, token_ids), f"seed {seed}"


def test_a_character_is_released_only_when_complete(mistral: MistralRenderer) -> None:
    detokenizer = mistral.create_detokenizer()
    pieces = [detokenizer.append([token_id]).text for token_id in encode(mistral, "你好 😀 👍🏽")]
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_that_the_prompt_began_is_part_of_the_output(mistral: MistralRenderer) -> None:
    token_ids = encode(mistral, "ok 好 😀")
    for cut in range(1, len(token_ids)):
        before = decode(mistral, token_ids[:cut]).rstrip("\ufffd")
        text = feed(mistral.create_detokenizer(prompt=PromptTail(token_ids[:cut])), token_ids[cut:])
        assert before + text == "ok 好 😀", cut


def test_endless_broken_bytes_and_skipped_tokens_are_released(mistral: MistralRenderer) -> None:
    broken = next(i for i in range(mistral.vocab_size) if mistral.token_bytes(i) == b"\xff")
    detokenizer = mistral.create_detokenizer()
    for _ in range(10 * MAX_HELD_TOKENS):
        detokenizer.append([broken])
        detokenizer.append([2])
        assert len(detokenizer._stream._pending) < MAX_HELD_TOKENS
    assert detokenizer.text + detokenizer.finish() == "\ufffd" * 10 * MAX_HELD_TOKENS


def test_the_first_word_after_a_prompt_keeps_its_space(mistral: MistralRenderer) -> None:
    whole = encode(mistral, "the capital of")
    [*prompt, last] = whole
    assert (
        feed(mistral.create_detokenizer(prompt=PromptTail(prompt)), [last])
        == decode(mistral, whole)[len(decode(mistral, prompt)) :]
    )


def test_special_tokens_are_skipped_except_those_that_delimit_calls_and_reasoning(mistral: MistralRenderer) -> None:
    names = ("[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]", "[INST]", "</s>")
    known = [name for name in names if name in mistral.tokenizer.added_tokens.values()]
    token_ids = [part for name in known for part in (named(mistral, name), *encode(mistral, "a b"))]
    everything = "".join(f"{name}a b" for name in known)
    skipped = everything.replace("</s>", "").replace("[INST]", "")
    expected = decode(mistral, token_ids)
    assert expected.replace(" a", "a") == skipped
    assert feed(mistral.create_detokenizer(), token_ids) == expected
    written = mistral.create_detokenizer(skip_special_tokens=False)
    assert feed(written, token_ids) == mistral.detokenize(token_ids) == everything


def random_tokens(renderer: MistralRenderer, rng: random.Random, *, length: int) -> list[int]:
    token_ids: list[int] = []
    while len(token_ids) < length:
        if rng.random() < 0.1:
            token_ids += encode(renderer, rng.choice("😀👍🏽好é"))
        elif rng.random() < 0.1:
            token_ids.append(rng.choice(list(renderer.tokenizer.added_tokens)[:20]))
        else:
            token_ids.append(rng.randrange(renderer.vocab_size))
    return token_ids


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["tekken.json", "tekken_240911.json", "tokenizer.model.v7"], "tekken.json"),
        (["tekken_240718.json", "tekken_240911.json", "tokenizer.model.v7"], "tekken_240911.json"),
        (["tokenizer.model", "tokenizer.model.v3"], "tokenizer.model.v3"),
        (["tokenizer.model.v3", "tokenizer.model.v11", "tokenizer.model.v7m1"], "tokenizer.model.v11"),
        (["tokenizer.model.v7", "tokenizer.model.v7m1"], "tokenizer.model.v7m1"),
        (
            ["mistral_instruct_tokenizer_240216.model.v2", "tokenizer.model"],
            "mistral_instruct_tokenizer_240216.model.v2",
        ),
        (["tokenizer.json", "tokenizer.model", "config.json"], "tokenizer.model"),
        (["tokenizer.json", "spiece.model", "tekken.txt", "tokenizer.model.v3.bak"], None),
        ([], None),
    ],
)
def test_the_newest_file_is_used(names: list[str], expected: str | None, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    found = find_mistral_file(tmp_path)
    assert (found and found.name) == expected


def test_the_path_may_be_the_file_itself(mistral_folders: dict[str, Path], tmp_path: Path) -> None:
    file = mistral_folders["v3"] / "mistral_instruct_tokenizer_240323.model.v3"
    assert find_mistral_file(file) == file
    assert MistralTokenizer.from_folder(file).version == 3
    assert find_mistral_file(tmp_path / "no.model.v3") is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["consolidated.safetensors", "tekken.json"], True),
        (["consolidated-00001-of-00002.safetensors", "tokenizer.model.v3"], True),
        (["consolidated.safetensors", "tokenizer.model"], False),
        (["consolidated.00.pth", "tekken.json"], False),
        (["model.safetensors", "tekken.json"], False),
    ],
)
def test_mistral_s_own_releases_are_recognized(names: list[str], expected: bool, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert is_mistral_format(tmp_path) is expected


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (None, "", "no tekken.json, no tokenizer.model"),
        ("tekken.json", "{", "tekken.json: "),
        ("tekken.json", "{}", "tekken.json: "),
        ("tekken.json", '{"config": {"version": "v99"}}', "v99"),
        ("tokenizer.model.v3", "no model", "tokenizer.model.v3: "),
        ("tokenizer.model.v99", "", "tokenizer.model.v99: "),
    ],
)
def test_a_missing_or_broken_file_fails_the_start(name: str | None, content: str, words: str, tmp_path: Path) -> None:
    if name is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerLoadError, match=words) as raised:
        MistralTokenizer.from_folder(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("module", "unwanted"),
    [("server.renderers.mistral", "torch"), ("server.renderers.registry", "mistral_common")],
)
def test_importing_a_renderer_does_not_import_libraries_of_others(module: str, unwanted: str) -> None:
    script = f"import sys, {module}; print({unwanted!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr
