"""The recorded facts agree with vLLM, and words are read as vLLM reads them."""

from pathlib import Path
from typing import Final

import msgspec
import pytest

from startup.vllm_words.facts import VllmFacts
from startup.words.flag import Shape
from startup.words.table import FLAGS
from tests.support.peer_vllm import ask_vllm
from tests.support.reading import Reading
from tests.support.vllm_flags import VLLM_NAMES
from tests.vllm_engine.preflight.start_folders import StartFolders
from tests.vllm_engine.preflight.written_starts import written_starts

pytestmark = pytest.mark.versions

VALUES: Final = (
    "1", "0", "-1", "1.5", "8k", "8K", "1.5k", "1.5K", "auto", "AUTO", "x", "", "None", "{}", '{"a": 1}', "[1]", "[]",
    "true", "1_0", " 1", "nan", "1e3", '{"a"', "80g", "-2", "null", '"text"', "a=b", "Half", "half", "deep-gemm",
    "tcp://10.0.0.1:80",
)  # fmt: skip


_SCRIPT: Final = Path(__file__).parent / "preflight" / "vllm_parser.py"


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> VllmFacts:
    answer = ask_vllm(_SCRIPT, {"lines": []}, tmp_path_factory.mktemp("facts"), timeout_s=1200)
    return msgspec.convert(answer["facts"], VllmFacts)


def _read(lines: list[list[str]], folder: Path) -> list[Reading]:
    answer = ask_vllm(_SCRIPT, {"lines": lines}, folder, timeout_s=1200)
    return msgspec.convert(answer["readings"], list[Reading])


def test_words_of_starts_are_read_as_vllm_reads_them(tmp_path):
    """`tests/startup/vllm_words/test_grammar.py` has words of any form."""
    folders = StartFolders(tmp_path)
    lines = [[folders.fill(word) for word in start.words] for start in written_starts() if start.words]
    readings = _read(lines, tmp_path)
    wrong = [reading.differences or reading.is_accepted and reading.faults for reading in readings]
    assert [pair for pair in zip(lines, wrong, strict=True) if pair[1]] == []
    assert 50 < sum(reading.is_accepted for reading in readings) < len(lines) - 20


def test_each_value_that_vllm_accepts_passes_and_of_plain_values_nothing_else(facts, tmp_path):
    flags = {option: flag for flag in facts.flags if flag.nargs != 0 for option in flag.options}
    lines = [["m", f"{option}={value}"] for option in flags for value in VALUES]
    pairs = list(zip(lines, _read(lines, tmp_path), strict=True))
    assert [pair for pair in pairs if pair[1].is_accepted and (pair[1].faults or pair[1].differences)] == []
    unchecked = ("unknown", "object")
    passed = {words[1].partition("=")[0] for words, found in pairs if not (found.is_accepted or found.faults)}
    assert {option for option in passed if flags[option].kind not in unchecked} <= {"--mm-processor-device"}
    assert len({flag.name for flag in flags.values() if flag.kind == "unknown"}) <= 8
    assert len(flags) > 200


def test_registered_names(facts):
    examples = {
        "--tool-call-parser": "hermes", "--reasoning-parser": "qwen3", "--quantization": "fp8",
        "--load-format": "dummy", "--attention-backend": "FLASH_ATTN", "architectures": "LlamaForCausalLM",
    }  # fmt: skip
    assert [flag for flag, name in examples.items() if name not in facts.names.get(flag, ())] == []


def test_the_table_of_flags_has_all_of_vllms_and_the_same_switches(facts):
    names = {name for flag in facts.flags for name in (*flag.names, *flag.opposites)}
    assert names - VLLM_NAMES == set()
    switches = {flag.name for flag in FLAGS if flag.shape is Shape.SWITCH}
    assert {flag.name for flag in facts.flags if flag.opposites} - switches == set()
