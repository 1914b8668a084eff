"""The bare script gives the model's token, and its start is timed from exec."""

import asyncio
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vllm_cli.bench.startup import floor as startup_floor
from vllm_cli.bench.startup.config import PROMPT
from vllm_cli.bench.startup.floor import FloorSide
from vllm_cli.bench.target import TargetStartError

pytestmark = pytest.mark.thorough

SCRIPT = Path(startup_floor.__file__).with_name("bare_script.py")
PROMPTS = (PROMPT, "def fibonacci(n):\n    if n <")


def test_the_bare_script_gives_the_token_that_the_model_gives(model_path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype="auto")
    for prompt in PROMPTS:
        words = [sys.executable, "-P", str(SCRIPT), str(model_path), prompt]
        answer = subprocess.run(words, check=True, capture_output=True, text=True, timeout=240).stdout
        with torch.inference_mode():
            logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
        assert json.loads(answer)["text"] == tokenizer.decode([int(logits.argmax())]), prompt


def test_the_time_counts_from_exec_to_the_token(model_path) -> None:
    side = FloorSide(model_path, timeout_s=240)
    begin_s = time.monotonic()
    figures = asyncio.run(side.measure("warm"))
    assert 0 < figures.first_token_s < time.monotonic() - begin_s
    assert (figures.listening_ms, figures.healthy_s) == (None, None)
    assert side.first_text == " Paris"


def test_a_model_of_another_type_is_rejected_with_the_type(model_path, tmp_path) -> None:
    config = json.loads((model_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    shutil.copy(model_path / "tokenizer.json", tmp_path)
    with pytest.raises(TargetStartError, match="is of type 'mamba'"):
        asyncio.run(FloorSide(tmp_path, timeout_s=240).measure("warm"))


def test_a_script_beyond_its_time_out_is_killed(model_path) -> None:
    with pytest.raises(TargetStartError, match=r"no token within 0\.05 s"):
        asyncio.run(FloorSide(model_path, timeout_s=0.05).measure("warm"))
