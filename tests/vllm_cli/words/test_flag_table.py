"""The table of flags agrees with the dataclasses that have the values. The help of `serve`."""

import re
from dataclasses import MISSING
from typing import get_args, get_type_hints

import pytest

from envs.registry import LOGGING_LEVELS, variables
from envs.replacements import REPLACEMENTS
from server.terms.config import DTypeName, RendererConfig
from startup.words.param_types import SIZE, spell_size
from startup.words.supported import CONFIG_FIELDS, GROUPS, SUPPORTED, VARIABLES
from startup.words.table import FLAGS, IGNORED, REJECTED, find_flag
from tests.support.vllm_flags import VLLM_NAMES, is_own
from vllm_cli.commands.bake import bake
from vllm_cli.commands.prefetch import prefetch
from vllm_cli.main import main


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


def test_help_shows_kinds_of_models_and_the_supported_flags_in_groups_with_defaults_and_units(invoke):
    text = invoke("serve", "--help").stdout
    assert [title for title in GROUPS if f"\n{title}:\n" not in text] == []
    assert [flag.name for flag in SUPPORTED if flag.name.removeprefix("--") not in text] == []
    assert "--tensor-parallel-size" not in text
    text = " ".join(text.split())
    for kind in ("a name on the Hugging Face hub", "a folder", "a .gguf file", "`team/Model-GGUF:Q4_K_M`"):
        assert kind in text
    assert "Port to listen on. [8000]" in text
    assert "--[no-]enable-prefix-caching" in text
    assert "Largest body of a request without prompt_embeds. A larger body gets 413. [32MiB]" in text
    assert "How long running requests may take to finish after SIGTERM. [25]" in text


def test_defaults_are_those_of_the_fields_and_sizes_can_be_read_again():
    flags = {flag.name: flag for flag in SUPPORTED}
    assert (flags["--renderer-num-workers"].default, flags["--engine"].default) == (2, "auto")
    sizes = [flag.default for flag in SUPPORTED if flag.kind == "size" and flag.default]
    assert len(sizes) >= 2
    assert [SIZE.convert(spell_size(size), None, None) for size in sizes] == sizes


def test_help_may_follow_other_words_and_help_all_shows_every_flag(capsys, invoke):
    assert main(["serve", "model", "--config", "missing.yaml", "-h"]) == 0
    assert capsys.readouterr().out.startswith("Usage: vllm-cli serve [OPTIONS] [MODEL]")
    text = invoke("serve", "--help=all").stdout
    assert [flag.name for flag in FLAGS if flag.name.removeprefix("--") not in text] == []


@pytest.mark.parametrize(
    ("topic", "shown"),
    [
        ("max_num", ("--max-num-seqs", "--max-num-queued-reqs")),
        *(
            (topic, ("--max-model-len", "Most tokens of prompt and answer together"))
            for topic in ("max_model_len", "--max-model-len", "MAX-MODEL-LEN")
        ),
        ("tensor-parallel-size", ("Only with --engine vllm", "-tp")),
    ],
)
def test_help_with_a_word_shows_the_flags_that_contain_it(invoke, topic, shown):
    text = invoke("serve", f"--help={topic}").stdout
    assert [words for words in shown if words not in text] == []
    assert "--port" not in text


@pytest.mark.parametrize(
    ("num_bytes", "spelling"),
    [(0, "0"), (1000, "1000"), (1024, "1KiB"), (1536, "1536"), (3 << 29, "1536MiB"), (1 << 40, "1TiB")],
)
def test_sizes_are_spelt_in_the_largest_unit_that_divides_them(num_bytes, spelling):
    assert spell_size(num_bytes) == spelling


@pytest.mark.parametrize("command", [bake, prefetch], ids=lambda command: command.name)
def test_commands_with_options_of_their_own_take_the_flags_of_the_server_as_they_are(command, capsys):
    words = ["model", "-cc.cudagraph_mode=NONE", "--max_model_len", "8k"]
    assert command.make_context("", [*words, "--json"]).params["words"] == tuple(words)
    assert main([str(command.name), "--help=cudagraph"]) == 0
    assert "--max-cudagraph-capture-size" in capsys.readouterr().out
