"""No text makes a token of a format much more expensive than its ordinary ones."""

from collections.abc import Iterable
from time import thread_time_ns

import pytest

from server.parsers.registry import load_tool_parser
from tests.server.parsers.parsed import DEFINITIONS

MOST_TIMES = 25
"""A hostile token may cost this many ordinary ones. It was 700."""
TOKEN = 4
NUM_TOKENS = 300

FUNCTIONGEMMA = "<start_function_call>call:run_code{code:<escape>"
GEMMA4 = "<|tool_call>call:run_code{"
GLM45 = "<tool_call>run_code\n<arg_key>"


@pytest.mark.alone
@pytest.mark.parametrize(
    ("name", "start", "hostile"),
    [
        ("functiongemma", FUNCTIONGEMMA, "0"),
        ("functiongemma", FUNCTIONGEMMA, "\n "),
        ("gemma4", GEMMA4, "é"),
        ("gemma4", GEMMA4, "a)"),
        ("gemma4", GEMMA4, "\n"),
        ("gemma4", GEMMA4 + "code:", ","),
        ("glm45", GLM45, " "),
        ("glm45", GLM45, "a "),
        ("glm45", "<tool_call>run_code", " "),
    ],
)
def test_no_token_costs_many_times_an_ordinary_one(name, start, hostile):
    ordinary = cost_ns(name, ["x = 1\n"] * NUM_TOKENS)
    text = hostile * (TOKEN * NUM_TOKENS // len(hostile))
    tokens = [text[at : at + TOKEN] for at in range(0, len(text), TOKEN)]
    assert cost_ns(name, [start, *tokens]) < MOST_TIMES * ordinary


def cost_ns(name: str, tokens: Iterable[str]) -> int:
    """The least processor time of three rounds."""
    costs = []
    for _ in range(3):
        parser = load_tool_parser(name)(DEFINITIONS)
        begin = thread_time_ns()
        for token in tokens:
            parser.feed(token, ())
        costs.append(thread_time_ns() - begin)
    return min(costs)
