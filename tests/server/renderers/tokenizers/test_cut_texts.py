"""Long texts are cut as by transformers, without a change of the tokenizer that all threads share."""

from itertools import product

import pytest
from tokenizers import processors

from server.renderers.tokenizers.hf_tokenizer import HfTokenizer
from server.renderers.tokenizers.loading import load_tokenizer
from server.renderers.tokenizers.tokenizer import Cut
from tests.server.renderers.conftest import KINDS

TEXTS = ["the quick brown fox", "a dog", "x", None]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", [*KINDS, "pairs"])
def test_one_text_or_two_are_cut_as_by_transformers(kind, side, tokenizer_folders):
    folder = tokenizer_folders["wordpiece" if kind == "pairs" else kind]
    loaded, reference = load_tokenizer(folder), load_tokenizer(folder)
    reference.truncation_side = side
    if kind == "pairs":
        template = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        loaded.backend_tokenizer.post_processor = reference.backend_tokenizer.post_processor = template
    tokenizer = HfTokenizer(loaded)
    for text, pair, limit in product(TEXTS[:3], TEXTS, range(3, 15)):
        expected = reference(text, pair, truncation=True, max_length=limit)
        found = tokenizer.encode_pair(text, pair, add_special_tokens=True, cut=Cut(limit, side))
        types = expected.get("token_type_ids")
        assert found == (expected["input_ids"][:limit], types and types[:limit]), (text, pair, limit)
    assert loaded.backend_tokenizer.truncation is None
