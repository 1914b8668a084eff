"""The table of flags agrees with the dataclasses that have the values."""

import re
from dataclasses import MISSING
from typing import get_args, get_type_hints

import pytest

from envs.registry import LOGGING_LEVELS, variables
from envs.replacements import REPLACEMENTS
from server.terms.config import DTypeName, RendererConfig
from startup.words.supported import CONFIG_FIELDS, SUPPORTED, VARIABLES
from startup.words.table import FLAGS, find_flag
from startup.words.unsupported import IGNORED, REJECTED
from tests.support.vllm_flags import VLLM_NAMES, is_own


def test_our_own_flags_begin_as_no_flag_of_vllm_does():
    """vLLM's parser accepts abbreviations of flags."""
    own = [flag.name for flag in FLAGS if is_own(flag)]
    assert [(name, theirs) for name in own for theirs in VLLM_NAMES if theirs.startswith(name)] == []


def test_every_spelling_belongs_to_one_flag_and_every_flag_is_of_one_kind():
    names = [name for flag in FLAGS for name in flag.options]
    assert len(names) == len(set(names))

    kinds = [set(SUPPORTED), *(set(flags) for table in (IGNORED, REJECTED) for flags in table.values())]
    assert sum(map(len, kinds)) == len(FLAGS)


def test_every_declared_flag_is_derived_once_and_every_field_can_be_set():
    declared = [field.metadata["flag"] for _, field, *_ in CONFIG_FIELDS if "flag" in field.metadata]
    without_field = {"--engine", "--config"}
    assert {flag.name for flag in SUPPORTED if not flag.fields} == without_field
    assert sorted(flag.name for flag in SUPPORTED) == sorted([*declared, *without_field])

    settable = {path for flag in SUPPORTED for path in flag.fields} | set(VARIABLES)
    assert {path for path, *_ in CONFIG_FIELDS} - settable == set()


def test_fields_filled_by_one_flag_or_by_a_variable_have_its_default():
    defaults = {path: field.default for path, field, *_ in CONFIG_FIELDS}
    shared = {flag.name: {defaults[path] for path in flag.fields} for flag in SUPPORTED if len(flag.fields) > 1}
    assert shared == {"--model": {None}, "--trust-remote-code": {False}}
    defaults = {path: field.default for path, field, *_ in CONFIG_FIELDS if field.default is not MISSING}
    assert {path: variable.default for path, variable in VARIABLES.items()}.items() <= defaults.items()


@pytest.mark.parametrize(
    ("flag", "choices"),
    [
        ("--dtype", get_args(DTypeName)),
        ("--chat-template-content-format", get_args(get_type_hints(RendererConfig)["chat_template_content_format"])),
        ("--log-level", LOGGING_LEVELS),
    ],
)
def test_choices_are_those_of_the_field(flag, choices):
    assert find_flag(flag).flag.choices == tuple(choices)


def test_every_supported_flag_has_a_sentence_of_help():
    assert [flag.name for flag in SUPPORTED if not re.fullmatch(r"\S.*\.", flag.help)] == []


def test_what_replaces_former_names_exists():
    names = {name for flag in FLAGS for name in flag.options} - {"--disable-log-requests"}  # again since 0.33
    of_other_commands = {"--vs", "--all", "--pid", "--max-inflight", "--hooks", "--env", "--quick"}
    of_vllms_bench = {
        *("--base-url", "--max-concurrency", "--num-prompts", "--backend", "--endpoint", "--save-result"),
        *("--random-input-len", "--random-output-len", "--random-prefix-len", "--ready-check-timeout-sec"),
    }
    for former, text in REPLACEMENTS.items():
        assert former not in names | {variable.name for variable in variables()}
        assert set(re.findall(r"--[a-z][a-z0-9-]+", text)) <= names | of_other_commands | of_vllms_bench
        assert set(re.findall(r"[A-Z]+_[A-Z_]+", text)) <= {variable.name for variable in variables()}
