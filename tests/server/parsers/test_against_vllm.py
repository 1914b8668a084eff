"""The same texts give the same results as vLLM's parsers; `-s` prints how many texts and differences."""

from collections import Counter
from pathlib import Path

import pytest

from tests.peer_vllm import ask_vllm, needs_vllm
from tests.server.parsers.differences import reason_of_difference
from tests.server.parsers.formats import FORMATS, LOSSES
from tests.server.parsers.parsed import parse, parsed_by_vllm
from tests.server.parsers.raw_texts import FUNCTIONS, raw_texts

pytestmark = [pytest.mark.slow, needs_vllm, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).with_name("vllm_parsers.py")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """vLLM's results for all formats, in the order of the texts."""
    formats = {form.name: {"markers": form.markers, "texts": [raw.text for raw in raw_texts(form)]} for form in FORMATS}
    question = {"functions": FUNCTIONS, "formats": formats}
    return ask_vllm(SCRIPT, question, tmp_path_factory.mktemp("vllm"), timeout_s=580)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_equals_vllm(form, answers):
    texts = raw_texts(form)
    assert len(texts) >= 200
    counts = Counter()
    for raw, answer in zip(texts, answers[form.name], strict=True):
        ours = parse(form, [raw.text])
        vllm = [parsed_by_vllm(answer["whole"]), parsed_by_vllm(answer["streamed"])]
        if ours.meaning in [theirs.meaning for theirs in vllm]:
            counts["equal"] += 1
            continue
        reason = reason_of_difference(form.name, ours, vllm)
        is_allowed = raw.kind in ("truncated", "damaged") or reason in LOSSES.get(form.name, ())
        assert reason is not None and is_allowed, f"{raw}\nours {ours}\nvLLM {vllm}"
        counts[reason] += 1
    print(f"\n{form.name}: {len(texts)} texts, {dict(counts)}")
