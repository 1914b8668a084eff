"""The table of known causes has its form, public sources, logs that show its causes, and settings of vLLM."""

import json
import re
from pathlib import Path
from typing import Final

import pytest
import yaml

from envs.replacements import REPLACEMENTS
from startup.arguments.supported import SUPPORTED
from startup.arguments.table import FLAGS
from tests.support.peer_vllm import ENVIRONMENT, needs_vllm
from tests.support.vllm_flags import VLLM_NAMES, is_own
from vllm_cli.explain.cause import is_in_range
from vllm_cli.explain.digest import for_embedded_engine
from vllm_cli.explain.table import KNOWN, LISTS, OWN, SETTINGS, read_table

FOLDER: Final = Path(__file__).parent
_OLDEST_ISSUE: Final = 10_800
"""About the number of the issues of vLLM that are two years old."""
_OF_OTHER_PROGRAMS: Final = {
    *("--cap-add", "--cpuset-cpus", "--device", "--gpus", "--group-add", "--ipc", "--pids-limit", "--security-opt"),
    *("--shm-size", "--ulimit", "--force", "--force-reinstall", "--no-build-isolation", "--previous", "--output"),
    *("--tmpfs", "--torch-backend", "--update", "--n-cpu-moe", "--help", "--hooks", "--plain-starts", "--flag"),
}
"""Flags in advice for docker, pip, kubectl, nvidia-ctk, wsl, llama-server and other commands of vllm-cli."""


def _advice() -> list[str]:
    return [text for each in (*KNOWN, *OWN) for text in (each.title, each.advice)]


def test_the_form_is_read():
    entry = {"name": "x", "title": "t", "advice": "a", "source": "vllm#1", "texts": ["one", "two…"], "tags": ["end"]}
    known = read_table(_with_cause(entry)).causes[0]
    assert (known.name, known.texts, known.where, known.advice) == ("x", ("one", "two…"), "end", "a")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"texts": "one"}, id="a text for a list"),
        pytest.param({"texts": [True]}, id="a text without quotes"),
        pytest.param({"txets": ["one"]}, id="an unknown member"),
        pytest.param({"tags": ["ends"]}, id="an unknown tag"),
        pytest.param({"advice": ["a"]}, id="a list for a text"),
        pytest.param({"name": "vllm-cli"}, id="a name that occurs twice"),
    ],
)
def test_another_form_is_an_error_that_names_the_entry(change):
    entry = {"name": "x", "title": "t", "advice": "a", "source": "vllm#1", "texts": ["one"]} | change
    with pytest.raises(ValueError, match=r"known_causes\.yaml: .*" + str(entry["name"])):
        read_table(_with_cause(entry))


def _with_cause(entry: dict[str, object]) -> str:
    """A file with this cause. JSON is YAML."""
    other = {"name": "vllm-cli", "title": "t", "advice": "a", "source": "own", "texts": ["x"]}
    return json.dumps({"causes": [entry, other], "parts": [], "settings": {}, "texts": {}})


def test_each_cause_is_shown_by_a_log_of_the_tests_or_a_young_issue():
    files = ("logs.yaml", "wrong_remedies.yaml", "raised.yaml")
    shown = {entry["cause"] for name in files for entry in yaml.load((FOLDER / name).read_text(), yaml.CSafeLoader)}
    numbers = {each.name: int(each.source[5:]) for each in KNOWN if each.source.startswith("vllm#")}
    old = [each for each in KNOWN if each.source != "own" and numbers.get(each.name, 0) < _OLDEST_ISSUE]
    assert [each.name for each in old if each.name not in shown] == []


def test_no_advice_names_a_flag_that_vllm_has_given_up():
    named = {name for text in _advice() for name in re.findall(r"--[a-z][\w-]+", text)}
    assert (named - {"--device"}).isdisjoint(REPLACEMENTS)  # docker's --device


def test_each_flag_in_advice_is_one_of_the_tested_releases():
    own = {name for flag in FLAGS if is_own(flag) for name in flag.options}
    named = {name for text in _advice() for name in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)}
    assert named - VLLM_NAMES - own - _OF_OTHER_PROGRAMS == set()
    assert {name for name in SETTINGS if name.startswith("--")} - VLLM_NAMES == set()


def test_advice_for_the_embedded_engine_names_only_flags_that_it_has():
    """The engine's own table of flags decides."""
    its_own = {name for flag in SUPPORTED for name in flag.options}
    named = {name for text in _advice() for name in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)}
    assert set(LISTS["flags that only vLLM has"]) == (named & VLLM_NAMES) - its_own
    for text in _advice():
        left = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", for_embedded_engine(text)))
        assert left <= its_own | _OF_OTHER_PROGRAMS, text


@pytest.mark.parametrize(
    ("advice", "expected"),
    [
        (
            "Raise the limit of the container or pod, lower --cpu-offload-gb, or run fewer processes here.",
            "Raise the limit of the container or pod, or run fewer processes here.",
        ),
        ("Set --kv-cache-dtype fp8, or lower --max-model-len.", "Lower --max-model-len."),
        ("Try --enforce-eager. Free memory.", "Free memory."),
        ("Lower --max-model-len, or free memory.", "Lower --max-model-len, or free memory."),
        ("Start with --tensor-parallel-size 2.", ""),
    ],
)
def test_remedies_with_flags_that_only_vllm_has_are_left_out(advice, expected):
    assert for_embedded_engine(advice) == expected


@needs_vllm
def test_each_variable_in_advice_is_one_of_vllm():
    (file,) = ENVIRONMENT.glob("lib/python3*/site-packages/vllm/envs.py")
    declared = set(re.findall(r"\bVLLM_[A-Z0-9_]+", file.read_text()))
    named = {name for text in _advice() for name in re.findall(r"\bVLLM_[A-Z0-9_]+\b", text)}
    assert named - declared == set()


@pytest.mark.parametrize(
    ("version", "versions", "is_in"),
    [
        ("0.11.0", "<0.12", True),
        ("0.12.0", "<0.12", False),
        ("0.12.0rc1", ">=0.12", True),
        ("0.9.2", ">=0.10", False),
        ("5.1", ">=5,<5.15", True),
        ("5.15.1", ">=5,<5.15", False),
    ],
)
def test_a_version_is_in_a_range(version, versions, is_in):
    assert is_in_range(version, versions) == is_in
