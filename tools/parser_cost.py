"""Measures what parsers of tool calls cost per token: `python -m tools.parser_cost [FORMAT …]`.

An output has about 2000 tokens of four characters: a third text, a third calls, a third one long argument.
The last column is for eight times as many tokens: the cost must not grow with the length. Medians of 9.
"""

import random
import statistics
import sys
from collections.abc import Sequence
from time import process_time

from server.parsers.registry import load_tool_parser
from tests.server.parsers.formats import FORMATS
from tests.server.parsers.parsed import DEFINITIONS
from tests.server.parsers.raw_texts import Call, Format

TOKENS = 2000
ROUNDS = 9


def main(names: list[str]) -> None:
    print(f"{'parser':<18}{'tokens':>8}{'µs per token':>14}{'8 × as long':>14}")
    for form in FORMATS:
        if not names or form.name in names:
            short, long = (output_tokens(form, TOKENS * times) for times in (1, 8))
            print(
                f"{form.name:<18}{len(short):>8}{cost_us(form, short):>14.1f}{cost_us(form, long):>14.1f}", flush=True
            )


def output_tokens(form: Format, num_tokens: int) -> list[tuple[str, Sequence[int]]]:
    """The tokens of an output, with their text."""
    choose = random.Random(form.name)
    third = num_tokens * 4 // 3
    code = "".join(choose.choices("abc def\n\"'\\é", k=third))
    calls = [Call("search", {"query": "é🎉 x", "limit": 3, "tags": ["a", "b"]})] * (third // 60)
    before = "" if form.begins_with_calls else "Let me see. " * (third // 12)
    text = form.around(before, form.write([*calls, Call("run_code", {"code": code})], choose), "")
    if token_ids := form.tokenize(text):
        return [("", [token_id]) for token_id in token_ids]
    return [(piece, ()) for piece in _token_texts(text, choose)]


def cost_us(form: Format, tokens: list[tuple[str, Sequence[int]]]) -> float:
    """The median processor time of one token."""
    rounds = []
    for _ in range(ROUNDS):
        parser = load_tool_parser(form.name)(DEFINITIONS)
        start = process_time()
        for text, token_ids in tokens:
            parser.feed(text, token_ids)
        parser.finish()
        rounds.append(process_time() - start)
    return statistics.median(rounds) / len(tokens) * 1e6


def _token_texts(text: str, choose: random.Random) -> list[str]:
    pieces, start = [], 0
    while start < len(text):
        end = start + choose.randint(2, 6)
        pieces.append(text[start:end])
        start = end
    return pieces


if __name__ == "__main__":
    main(sys.argv[1:])
