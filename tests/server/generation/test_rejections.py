"""A request that cannot be served is rejected with the field and the fault.

A line of rejected.jsonl has the fields of a chat, of a completion or of both, with the parameter and the
message of the error. Without `param`, the engine rejects the grammar.
"""

from pathlib import Path
from typing import Any

import pytest

from base.errors import RequestError
from server.engine.sampling.grammar import GrammarError
from server.generation.completion_request import CompletionRequest
from server.generation.guided import find_constraint
from server.generation.request import ChatRequest
from tests.conversations.conversation import differences, read_lines
from tests.server.engine.sampling.grammar_texts import build_grammar
from tests.server.generation.requests import Model, decode
from tests.server.generation.test_sampling import sample

MODELS: dict[str, list[Model]] = {
    "chat": [ChatRequest],
    "completion": [CompletionRequest],
    "both": [CompletionRequest, ChatRequest],
}
CASES = [
    pytest.param(line, model, line[kind], id=f"{place} {model.__name__}")
    for place, line in read_lines(Path(__file__).with_name("rejected.jsonl"))
    for kind in MODELS.keys() & line.keys()
    for model in MODELS[kind]
]


@pytest.mark.parametrize(("line", "model", "fields"), CASES)
def test_a_request_is_rejected(line: dict[str, Any], model: Model, fields: dict[str, Any]):
    kind = RequestError if "param" in line else GrammarError
    with pytest.raises(kind) as caught:
        if (constraint := find_constraint(decode(model, **fields))) is not None:
            build_grammar(constraint.guided)
        sample(model, num_prompt_tokens=line.get("num_prompt_tokens", 5), **fields)
    if isinstance(caught.value, RequestError):
        assert (caught.value.status, caught.value.param) == (400, line["param"])
        assert caught.value.message
    assert differences("message", str(caught.value), {"": line.get("message", "...")}) == []
