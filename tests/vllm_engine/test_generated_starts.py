"""Of 150 generated starts, the preflight refuses none that vLLM's own code accepts."""

from pathlib import Path
from typing import Final

import msgspec
import pytest

from startup.vllm_words.facts import VllmFacts
from tests.support.peer_vllm import ask_vllm
from tests.vllm_engine.preflight.generated_starts import generate

pytestmark = pytest.mark.versions

_SCRIPTS: Final = Path(__file__).parent / "preflight"
_SEED: Final = 1
_NUMBER: Final = 150
_LATER: Final = ("lora", "package", "memory")
"""Checks for steps of vLLM that come after all steps in `vllm_starts.py`."""


def test_what_vllm_accepts_is_not_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "CRITICAL")
    recorded = ask_vllm(_SCRIPTS / "vllm_parser.py", {"lines": []}, tmp_path)["facts"]
    starts = generate(_SEED, _NUMBER, msgspec.convert(recorded, VllmFacts))
    questions = [start.write(tmp_path / str(number)) for number, start in enumerate(starts)]
    errors = ask_vllm(_SCRIPTS / "own_preflights.py", questions, tmp_path, timeout_s=1200)
    refused = [number for number, found in enumerate(errors) if any(check not in _LATER for check, _ in found)]
    answers = ask_vllm(_SCRIPTS / "vllm_starts.py", [questions[number] for number in refused], tmp_path, timeout_s=2400)
    stages = {number: answer["stage"] for number, answer in zip(refused, answers, strict=True)}
    assert [(starts[number], errors[number]) for number, stage in stages.items() if stage == "done"] == []
    assert len(refused) > _NUMBER / 5
