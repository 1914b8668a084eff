"""The table of flags agrees with the dataclasses that have the values."""

import re
from dataclasses import MISSING
from typing import get_args, get_type_hints

import click
import pytest

from envs.registry import LOGGING_LEVELS, variables
from envs.replacements import REPLACEMENTS
from server.terms.config import DTypeName, RendererConfig
from startup.words.supported import CONFIG_FIELDS, GROUPS, SUPPORTED, VARIABLES
from startup.words.table import FLAGS, find_flag, spellings
from startup.words.unsupported import IGNORED, REJECTED
from tests.support.vllm_flags import VLLM_NAMES, is_own


def test_our_own_flags_begin_as_no_flag_of_vllm_does():
    """vLLM's parser accepts abbreviations of flags."""
    own = [flag.name for flag in FLAGS if is_own(flag)]
    assert [(name, theirs) for name in own for theirs in VLLM_NAMES if theirs.startswith(name)] == []


def test_every_spelling_belongs_to_one_flag():
    names = [name for flag in FLAGS for name in spellings(flag)]
    assert len(names) == len(set(names))


def test_every_flag_is_of_one_kind():
    kinds = [set(SUPPORTED), *(set(flags) for table in (IGNORED, REJECTED) for flags in table.values())]
    assert sum(map(len, kinds)) == len(FLAGS)


def test_every_declared_flag_is_derived_once():
    declared = [field.metadata["flag"] for _, field, *_ in CONFIG_FIELDS if "flag" in field.metadata]
    without_field = {"--engine", "--config"}
    assert {flag.name for flag in SUPPORTED if not flag.fields} == without_field
    assert sorted(flag.name for flag in SUPPORTED) == sorted([*declared, *without_field])


def test_every_field_can_be_set():
    settable = {path for flag in SUPPORTED for path in flag.fields} | set(VARIABLES)
    assert {path for path, *_ in CONFIG_FIELDS} - settable == set()


def test_fields_filled_by_one_flag_have_one_default():
    defaults = {path: field.default for path, field, *_ in CONFIG_FIELDS}
    shared = {flag.name: {defaults[path] for path in flag.fields} for flag in SUPPORTED if len(flag.fields) > 1}
    assert shared == {
        "--model": {None},
        "--trust-remote-code": {False},
        "--enable-prompt-embeds": {False},
    }


def test_a_variable_without_a_flag_has_the_default_of_its_field():
    defaults = {path: field.default for path, field, *_ in CONFIG_FIELDS if field.default is not MISSING}
    assert {path: variable.default for path, variable in VARIABLES.items()}.items() <= defaults.items()


def test_a_flag_follows_the_one_that_its_field_names():
    names = [flag.name for flag in GROUPS["Model"]]
    assert names[:4] == ["--model", "--served-model-name", "--tokenizer", "--tokenizer-mode"]


@pytest.mark.parametrize(
    ("flag", "choices"),
    [
        ("--dtype", get_args(DTypeName)),
        ("--chat-template-content-format", get_args(get_type_hints(RendererConfig)["chat_template_content_format"])),
        ("--log-level", LOGGING_LEVELS),
    ],
)
def test_choices_are_those_of_the_field(flag, choices):
    declared = find_flag(flag).flag.type
    assert isinstance(declared, click.Choice)
    assert tuple(declared.choices) == tuple(choices)


def test_every_supported_flag_has_a_sentence_of_help():
    assert [flag.name for flag in SUPPORTED if not re.fullmatch(r"\S.*\.", flag.help)] == []


def test_what_replaces_former_names_exists():
    names = {name for flag in FLAGS for name in spellings(flag)} - {"--disable-log-requests"}  # again since 0.33
    of_other_commands = {"--vs", "--vs-url", "--all", "--pid", "--max-inflight"}
    for former, text in REPLACEMENTS.items():
        assert former not in names | {variable.name for variable in variables()}
        assert set(re.findall(r"--[a-z][a-z0-9-]+", text)) <= names | of_other_commands
        assert set(re.findall(r"[A-Z]+_[A-Z_]+", text)) <= {variable.name for variable in variables()}
