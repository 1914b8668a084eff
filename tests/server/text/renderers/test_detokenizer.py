"""Text decoded token by token equals the full decode. Stop strings may span pieces of text and tokens."""

import random
from collections.abc import Sequence

import pytest

from server.text.renderers import detokenizer
from server.text.renderers.detokenizer import MAX_HELD_TOKENS, DecodeWindow, PromptTail, StopScanner, decode_in_pieces
from server.text.renderers.renderer import Renderer
from tests.server.text.renderers.conftest import TEXTS, encode, feed
from tests.support.properties import given, pieces, st


def full_decode(renderer: Renderer, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
    return renderer.tokenizer.loop_decoder(skip_special_tokens=skip_special_tokens)(token_ids)


@pytest.mark.parametrize(("has_prompt", "skip"), [(False, True), (False, False), (True, True)])
def test_random_tokens_give_the_full_decode(renderer, has_prompt, skip):
    for seed in range(30):
        rng = random.Random(seed)
        prompt: list[int] = []
        if has_prompt:
            prompt = encode(renderer, rng.choice(TEXTS[:4]) * rng.randint(1, 3))
            prompt += [renderer.tokenizer.eos_token_id or 0] * rng.randint(0, 9)
        output = random_tokens(renderer, rng, length=40) + encode(renderer, "the")  # ends with a whole character
        before, whole = (full_decode(renderer, ids, skip_special_tokens=skip) for ids in (prompt, prompt + output))
        assert whole.startswith(before)
        options = {"prompt": PromptTail(prompt)} if has_prompt else {}
        detokenizer = renderer.create_detokenizer(skip_special_tokens=skip, **options)
        assert feed(detokenizer, output) == whole[len(before) :], f"seed {seed}"


def test_pieces_give_the_full_decode(renderer, monkeypatch):
    monkeypatch.setattr(detokenizer, "_PIECE_TOKENS", 16)
    for text in TEXTS:
        token_ids = encode(renderer, text) * 20
        decode = renderer.tokenizer.loop_decoder(skip_special_tokens=True)
        assert decode_in_pieces(decode, token_ids) == decode(token_ids), text


def test_no_call_of_the_tokenizer_decodes_many_tokens(renderer, monkeypatch):
    """A call of the tokenizer holds the interpreter, so the event loop waits."""
    lengths = []

    def decode(token_ids: list[int], **_: object) -> str:
        lengths.append(len(token_ids))
        return "a" * len(token_ids)

    monkeypatch.setattr(renderer.tokenizer, "decode", decode)
    assert renderer.detokenize([5] * 900_000) == "a" * 900_000
    assert max(lengths) < 2400


def test_the_choices_of_a_prompt_decode_its_end_once():
    decoded: list[int] = []

    def decode(token_ids: Sequence[int]) -> str:
        decoded.append(len(token_ids))
        return ""

    tail = PromptTail([0] * 10_000)
    windows = [DecodeWindow(decode, tail) for _ in range(100)]
    assert sum(decoded) < 50_000
    windows[0].step(1)
    assert windows[1]._pending == []


def test_a_character_is_released_only_when_complete(renderer):
    detokenizer = renderer.create_detokenizer()
    pieces = [detokenizer.append([token_id]).text for token_id in encode(renderer, "你好 😀 👍🏽")]
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_that_the_prompt_began_is_part_of_the_output(renderer):
    token_ids = encode(renderer, "ok 好 😀")
    whole = full_decode(renderer, token_ids)
    for cut in range(1, len(token_ids)):
        before = full_decode(renderer, token_ids[:cut]).rstrip("\ufffd")
        text = feed(renderer.create_detokenizer(prompt=PromptTail(token_ids[:cut])), token_ids[cut:])
        assert before + text == whole, cut


def test_broken_bytes_of_a_byte_fallback_vocabulary_withdraw_no_text(renderers):
    renderer = renderers["llama"]
    ids = renderer.tokenizer.loaded.convert_tokens_to_ids
    token_ids = ids(["▁the", "<0xC3>", "<0xA9>", "<0xFF>", "▁the", "<0xE4>", "▁the"])
    assert None not in token_ids
    assert feed(renderer.create_detokenizer(), token_ids) == "theé\ufffd the\ufffd the"


def test_endless_broken_bytes_and_skipped_tokens_are_released(renderers):
    renderer = renderers["byte_level"]
    broken = next(i for i in range(renderer.tokenizer.vocab_size) if renderer.tokenizer.token_bytes(i) == b"\xff")
    detokenizer = renderer.create_detokenizer()
    pieces = []
    for _ in range(10 * MAX_HELD_TOKENS):
        pieces += [detokenizer.append([broken]).text, detokenizer.append([renderer.tokenizer.eos_token_id or 0]).text]
        assert len(detokenizer._stream._pending) < MAX_HELD_TOKENS
    assert "".join(pieces) + detokenizer.finish() == "\ufffd" * 10 * MAX_HELD_TOKENS
    assert detokenizer.append([broken, broken]).text + detokenizer.finish() == ""


def test_a_space_is_kept_after_many_skipped_tokens(renderer):
    word = encode(renderer, "the of")
    token_ids = [word[0], *[renderer.tokenizer.eos_token_id or 0] * 3 * MAX_HELD_TOKENS, *word[1:]]
    assert feed(renderer.create_detokenizer(), token_ids) == "the of"


def random_tokens(renderer: Renderer, rng: random.Random, *, length: int) -> list[int]:
    """Random tokens. Tokens of characters with many bytes and special tokens are more frequent.

    With ByteFallback, which replaces complete characters if invalid bytes follow them, all bytes form whole
    characters, because the full decode of other bytes is not stable.
    """
    fallback = range(3, 3 + 256) if "ByteFallback" in renderer.tokenizer.decoder_steps else range(0)
    named = {renderer.tokenizer.token_bytes(token_id): token_id for token_id in fallback}
    special = list(renderer.tokenizer.added_tokens)[:20]
    token_ids: list[int] = []
    while len(token_ids) < length:
        token_id = rng.randrange(renderer.tokenizer.vocab_size)
        if token_id in fallback:
            token_ids += [named[bytes([byte])] for byte in rng.choice("aé你😀\n").encode()]
        elif rng.random() < 0.1:
            token_ids += encode(renderer, rng.choice("😀👍🏽好é"))
        elif rng.random() < 0.1:
            token_ids.append(rng.choice(special))
        else:
            token_ids.append(token_id)
    return token_ids


def scan(scanner: StopScanner, pieces: list[str]) -> tuple[list[str], str | None]:
    shown = []
    for piece in pieces:
        text, stop = scanner.scan(piece)
        shown.append(text)
        if stop is not None:
            return shown, stop
    return [*shown, scanner.release()], None


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "found"),
    [
        pytest.param(["STOP"], ["go S", "T", "OP on"], ["go ", "", ""], "STOP", id="across pieces"),
        pytest.param(["STOP"], ["a ST", "EP"], ["a ", "STEP", ""], None, id="held back while it may begin"),
        pytest.param(["aab"], ["aa", "ab"], ["", "a"], "aab", id="a prefix within a prefix"),
        pytest.param(["cd", "abcd"], ["xabcd"], ["xab"], "cd", id="the first complete one wins, nested"),
        pytest.param(["bcx", "abcy"], ["1abc", "x"], ["1", "a"], "bcx", id="held back from the earliest"),
    ],
)
def test_text_is_held_back_while_it_may_begin_a_stop_string(stops, pieces, shown, found):
    assert scan(StopScanner(stops), pieces) == (shown, found)


def test_an_ignored_stop_string_is_not_found_later():
    scan_next = StopScanner(["ab", "xabz"])
    assert scan_next.scan("xab", can_stop=False) == ("", None)
    assert scan_next.scan("q") == ("xabq", None)
    assert scan_next.scan("xab") == ("x", "ab")


@given(
    st.text("ab", max_size=30).flatmap(pieces),
    st.lists(st.text("ab", min_size=2, max_size=6), min_size=1, max_size=3, unique=True),
)
def test_pieces_give_what_a_search_in_the_whole_text_gives(cut, stops):
    text = "".join(cut)
    ends = [(text.find(stop) + len(stop), i) for i, stop in enumerate(stops) if stop in text]
    end, i = min(ends, default=(None, None))
    expected = (text, None) if i is None else (text[: end - len(stops[i])], stops[i])
    shown, stop = scan(StopScanner(stops), cut)
    assert ("".join(shown), stop) == expected
