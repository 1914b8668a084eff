"""The help of `serve`."""

import pytest

from startup.words.param_types import SIZE, spell_size
from startup.words.supported import GROUPS, SUPPORTED
from startup.words.table import FLAGS
from vllm_cli.commands.bake import bake
from vllm_cli.commands.prefetch import prefetch
from vllm_cli.main import main


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
