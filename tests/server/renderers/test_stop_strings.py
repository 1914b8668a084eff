"""Stop strings across pieces of text and across tokens."""

import random
from collections.abc import Callable

import pytest

from server.renderers.detokenizer import MAX_STOP_CHARS, StopScanner
from tests.growth import growth


def scanner(*stops: str) -> StopScanner:
    return StopScanner(stops)


def scan(scanner: StopScanner, pieces: list[str]) -> tuple[list[str], str | None]:
    shown = []
    for piece in pieces:
        text, stop = scanner.scan(piece)
        shown.append(text)
        if stop is not None:
            return shown, stop
    return [*shown, scanner.release()], None


def test_text_before_a_stop_string_is_released():
    assert scan(scanner("STOP"), ["go on STOP there"]) == (["go on "], "STOP")


def test_the_stop_string_can_be_included():
    including = StopScanner(["STOP"], include_in_output=True)
    assert scan(including, ["go on S", "TOP there"]) == (["go on S", "TOP"], "STOP")


def test_a_stop_string_is_found_across_pieces():
    assert scan(scanner("STOP"), ["go S", "T", "OP on"]) == (["go ", "", ""], "STOP")


def test_text_is_held_back_only_while_it_may_begin_a_stop_string():
    assert scan(scanner("STOP"), ["a ST", "EP"]) == (["a ", "STEP", ""], None)


def test_held_back_text_is_released_at_the_end():
    assert scan(scanner("STOP"), ["a STO"]) == (["a ", "STO"], None)


def test_a_prefix_within_a_prefix_is_held_back():
    assert scan(scanner("aab"), ["aa", "ab"]) == (["", "a"], "aab")
    assert scan(scanner("\n\nQ"), ["x\n", "\n", "\nQ"]) == (["x", "", "\n"], "\n\nQ")


def test_the_stop_string_that_is_complete_first_wins():
    assert scan(scanner("world", "lo w"), ["hello world"]) == (["hel"], "lo w")
    assert scan(scanner("cd", "abcd"), ["xabcd"]) == (["xab"], "cd")


def test_several_candidates_are_held_back_from_the_earliest():
    assert scan(scanner("bcx", "abcy"), ["1abc", "x"]) == (["1", "a"], "bcx")
    assert scan(scanner("bcx", "abcy"), ["1abc", "y"]) == (["1", ""], "abcy")


def test_an_ignored_stop_string_is_not_found_later():
    scan_next = scanner("ab", "xabz")
    assert scan_next.scan("xab", can_stop=False) == ("", None)
    assert scan_next.scan("q") == ("xabq", None)
    assert scan_next.scan("xab") == ("x", "ab")


def test_random_pieces_give_what_a_search_in_the_whole_text_gives():
    for seed in range(2000):
        rng = random.Random(seed)
        text = "".join(rng.choices("ab", k=30))
        stops = ["".join(rng.choices("ab", k=rng.randint(2, 6))) for _ in range(rng.randint(1, 3))]
        ends = [(text.find(stop) + len(stop), i) for i, stop in enumerate(stops) if stop in text]
        cuts = sorted(rng.choices(range(31), k=rng.randint(0, 30)))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, 30], strict=True)]
        shown, stop = scan(scanner(*stops), pieces)
        if ends:
            end, i = min(ends)
            assert (stop, "".join(shown)) == (stops[i], text[: end - len(stops[i])]), seed
        else:
            assert (stop, "".join(shown)) == (None, text), seed


@pytest.mark.alone
def test_the_cost_of_many_long_stop_strings_is_linear():
    """Of a text that might be their beginning."""
    stops = ["a" * num + "b" * (64 - num) for num in range(0, 64, 4)]
    assert sum(map(len, stops)) == MAX_STOP_CHARS

    def prepare(n: int) -> Callable[[], object]:
        held = scanner(*stops)
        return lambda: [held.scan("aaaa") for _ in range(0, n, 4)]

    assert growth(prepare) is None


@pytest.mark.parametrize("include", [False, True])
def test_a_detokenizer_ends_at_a_stop_string(renderer, include):
    token_ids = renderer.tokenizer.encode("the quick brown fox jumps", add_special_tokens=False)
    whole = renderer.detokenize(token_ids)
    stops = ["brown fox", "never"]
    detokenizer = renderer.create_detokenizer(stop=stops, include_stop_str_in_output=include)
    deltas = [detokenizer.append([token_id]) for token_id in token_ids]
    stop_at = next(i for i, delta in enumerate(deltas) if delta.stop)
    assert deltas[stop_at].stop == "brown fox"
    text = "".join(delta.text for delta in deltas[: stop_at + 1])
    assert text == whole[: whole.index("brown fox") + (len("brown fox") if include else 0)]


def test_tokens_after_a_stop_string_are_ignored(renderer):
    token_ids = renderer.tokenizer.encode("the quick brown fox", add_special_tokens=False)
    detokenizer = renderer.create_detokenizer(stop=["quick"])
    assert detokenizer.append(token_ids) == ("the ", "quick")


def test_stop_strings_within_min_tokens_are_ignored(renderer):
    token_ids = renderer.tokenizer.encode("the quick the quick the", add_special_tokens=False)
    whole = renderer.detokenize(token_ids)
    first = renderer.create_detokenizer(stop=["quick"])
    num_before = next(i for i, token_id in enumerate(token_ids) if first.append([token_id]).stop)
    for min_tokens, end in ((num_before, whole.index("quick")), (num_before + 1, whole.rindex("quick"))):
        detokenizer = renderer.create_detokenizer(stop=["quick"], min_tokens=min_tokens)
        assert detokenizer.append(token_ids) == (whole[:end], "quick")


def test_a_stop_string_may_begin_within_min_tokens(renderer):
    token_ids = renderer.tokenizer.encode("the quick brown", add_special_tokens=False)
    detokenizer = renderer.create_detokenizer(stop=["quick brown"], min_tokens=len(token_ids) - 1)
    assert detokenizer.append(token_ids) == ("the ", "quick brown")


def test_finish_releases_what_might_have_been_a_stop_string(renderer):
    token_ids = renderer.tokenizer.encode("the quick", add_special_tokens=False)
    detokenizer = renderer.create_detokenizer(stop=["quick brown"])
    assert detokenizer.append(token_ids) == ("the ", None)
    assert detokenizer.finish() == "quick"
