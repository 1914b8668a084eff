"""A request that cannot be served is rejected with the field and the fault.

A line of rejected.jsonl has the fields of a chat, of a completion or of both, with the parameter and the
message of the error. Without `param`, the engine rejects the grammar.
"""

from typing import Any

import pytest

from base.errors import RequestError
from server.engine.sampling.grammar import GrammarError
from server.generation.guided import find_constraint
from tests.conversations.conversation import differences
from tests.server.engine.sampling.grammar_texts import build_grammar
from tests.server.generation.conftest import Model, decode, read_cases
from tests.server.generation.test_sampling import sample


@pytest.mark.parametrize(("line", "model", "fields"), read_cases("rejected.jsonl"))
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
