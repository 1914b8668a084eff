"""Text decoded token by token equals the full decode."""

import random
from collections.abc import Sequence

import pytest

from server.renderers.detokenizer import MAX_HELD_TOKENS, DecodeWindow, PromptTail
from server.renderers.hf import HfRenderer
from tests.server.renderers.detokenizing import TEXTS, feed


def full_decode(renderer: HfRenderer, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
    return renderer._hf.loaded.backend_tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_the_full_decode(renderer: HfRenderer, text: str) -> None:
    token_ids = renderer.tokenizer.encode(text, add_special_tokens=False)
    assert feed(renderer.create_detokenizer(), token_ids) == full_decode(renderer, token_ids)


@pytest.mark.parametrize("skip_special_tokens", [True, False])
def test_random_tokens_give_the_full_decode(renderer: HfRenderer, skip_special_tokens: bool) -> None:
    for seed in range(150):
        token_ids = random_tokens(renderer, random.Random(seed), length=40)
        detokenizer = renderer.create_detokenizer(skip_special_tokens=skip_special_tokens)
        expected = full_decode(renderer, token_ids, skip_special_tokens=skip_special_tokens)
        assert feed(detokenizer, token_ids) == expected, f"seed {seed}"


def test_random_tokens_after_a_prompt_give_the_full_decode(renderer: HfRenderer) -> None:
    for seed in range(150):
        rng = random.Random(seed)
        prompt = renderer.tokenizer.encode(rng.choice(TEXTS[:4]) * rng.randint(1, 3), add_special_tokens=False)
        prompt += [renderer.eos_token_id or 0] * rng.randint(0, 9)
        output = random_tokens(renderer, rng, length=30)
        before, whole = full_decode(renderer, prompt), full_decode(renderer, prompt + output)
        assert whole.startswith(before)
        assert feed(renderer.create_detokenizer(prompt=PromptTail(prompt)), output) == whole[len(before) :], (
            f"seed {seed}"
        )


def test_the_choices_of_a_prompt_decode_its_end_once() -> None:
    decoded: list[int] = []

    def decode(token_ids: Sequence[int]) -> str:
        decoded.append(len(token_ids))
        return ""

    tail = PromptTail([0] * 10_000)
    windows = [DecodeWindow(decode, tail) for _ in range(100)]
    assert sum(decoded) < 50_000
    windows[0].step(1)
    assert windows[1]._pending == []


@pytest.mark.parametrize("kind", ["real", "byte_level"])
def test_byte_level_tokens_that_are_not_characters_give_the_full_decode(
    kind: str, renderers: dict[str, HfRenderer]
) -> None:
    renderer = renderers[kind]
    single_bytes = [token_id for token_id in range(renderer.vocab_size) if len(renderer.token_bytes(token_id)) == 1]
    assert len(single_bytes) > 200
    for seed in range(200):
        token_ids = random.Random(seed).choices(single_bytes, k=60)
        assert feed(renderer.create_detokenizer(), token_ids) == full_decode(renderer, token_ids), f"seed {seed}"


def test_a_character_is_released_only_when_complete(renderer: HfRenderer) -> None:
    token_ids = renderer.tokenizer.encode("你好 😀 👍🏽", add_special_tokens=False)
    detokenizer = renderer.create_detokenizer()
    pieces = [detokenizer.append([token_id]).text for token_id in token_ids]
    assert not any("\ufffd" in piece for piece in pieces)


def test_several_tokens_at_once_give_the_same_text(renderer: HfRenderer) -> None:
    token_ids = renderer.tokenizer.encode(TEXTS[2], add_special_tokens=False)
    detokenizer = renderer.create_detokenizer()
    assert detokenizer.append(token_ids).text + detokenizer.finish() == full_decode(renderer, token_ids)


def test_the_first_word_after_a_prompt_keeps_its_space(renderer: HfRenderer) -> None:
    encode = renderer._hf.loaded.encode
    prompt, whole = encode("the capital", add_special_tokens=False), encode("the capital of", add_special_tokens=False)
    assert whole[: len(prompt)] == prompt
    assert feed(renderer.create_detokenizer(prompt=PromptTail(prompt)), whole[len(prompt) :]) == " of"


def test_an_incomplete_character_is_released_at_the_end(
    renderers: dict[str, HfRenderer],
) -> None:
    renderer = renderers["real"]
    token_ids = renderer.tokenizer.encode("ok 你", add_special_tokens=True)[:-1]
    detokenizer = renderer.create_detokenizer()
    assert "".join(detokenizer.append([token_id]).text for token_id in token_ids) == "ok "
    assert detokenizer.finish() == "\ufffd"


def test_a_character_that_the_prompt_began_is_part_of_the_output(
    renderers: dict[str, HfRenderer],
) -> None:
    for kind in ("real", "byte_level", "llama"):
        renderer = renderers[kind]
        token_ids = renderer.tokenizer.encode("ok 好 😀", add_special_tokens=False)
        for cut in range(1, len(token_ids)):
            before = full_decode(renderer, token_ids[:cut]).rstrip("\ufffd")
            text = feed(renderer.create_detokenizer(prompt=PromptTail(token_ids[:cut])), token_ids[cut:])
            assert before + text == "ok 好 😀", (kind, cut)


def test_broken_bytes_of_a_byte_fallback_vocabulary_withdraw_no_text(
    renderers: dict[str, HfRenderer],
) -> None:
    renderer = renderers["llama"]
    ids = renderer._hf.loaded.convert_tokens_to_ids
    token_ids = ids(["▁the", "<0xC3>", "<0xA9>", "<0xFF>", "▁the", "<0xE4>", "▁the"])
    assert None not in token_ids
    assert feed(renderer.create_detokenizer(), token_ids) == "theé\ufffd the\ufffd the"


def test_endless_broken_bytes_and_skipped_tokens_are_released(
    renderers: dict[str, HfRenderer],
) -> None:
    renderer = renderers["byte_level"]
    broken = next(i for i in range(renderer.vocab_size) if renderer.token_bytes(i) == b"\xff")
    detokenizer = renderer.create_detokenizer()
    for _ in range(10 * MAX_HELD_TOKENS):
        detokenizer.append([broken])
        detokenizer.append([2])
        assert len(detokenizer._stream._pending) < MAX_HELD_TOKENS
    assert detokenizer.text + detokenizer.finish() == "\ufffd" * 10 * MAX_HELD_TOKENS


def test_a_space_is_kept_after_many_skipped_tokens(renderer: HfRenderer) -> None:
    word = renderer.tokenizer.encode("the of", add_special_tokens=False)
    token_ids = [word[0], *[renderer.eos_token_id or 0] * 3 * MAX_HELD_TOKENS, *word[1:]]
    assert feed(renderer.create_detokenizer(), token_ids) == "the of"


def test_special_tokens_are_written_with_or_without_spaces_between(
    renderers: dict[str, HfRenderer],
) -> None:
    renderer = renderers["wordpiece"]
    token_ids = [1, 1, *renderer.tokenizer.encode("the", add_special_tokens=False), 2, 2]
    assert feed(renderer.create_detokenizer(skip_special_tokens=False), token_ids) == "<s> <s> the </s> </s>"
    together = renderer.create_detokenizer(skip_special_tokens=False, spaces_between_special_tokens=False)
    assert feed(together, token_ids) == "<s><s> the </s></s>"
    assert feed(renderer.create_detokenizer(), token_ids) == "the"


def random_tokens(renderer: HfRenderer, rng: random.Random, *, length: int) -> list[int]:
    """Random tokens.

    Byte-fallback bytes form whole characters, since broken ones have no stable full decode.
    """
    encode = renderer._hf.loaded.encode
    named = {renderer.token_bytes(token_id): token_id for token_id in range(3, 3 + 256)}
    has_fallback = (
        all(bytes([byte]) in named for byte in range(256)) and "ByteFallback" in renderer._hf._token_bytes._steps
    )
    token_ids: list[int] = []
    while len(token_ids) < length:
        token_id = rng.randrange(renderer.vocab_size)
        if has_fallback and 3 <= token_id < 3 + 256:
            token_ids += [named[bytes([byte])] for byte in rng.choice("aé你😀\n").encode()]
        elif rng.random() < 0.1:
            token_ids += encode(rng.choice("😀👍🏽好é"), add_special_tokens=False)
        else:
            token_ids.append(token_id)
    return token_ids
