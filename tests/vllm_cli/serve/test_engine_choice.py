"""The choice of the engine, and the split of a command line between launcher and vLLM."""

from pathlib import Path

import click
import pytest

from vllm_cli.errors import InputError
from vllm_cli.serve.engine_choice import LAUNCHER_FLAGS, choose_engine, split_words, vllm_options

VLLM_FLAGS = set((Path(__file__).parents[1] / "vllm_0_32_flags.txt").read_text().split())


def test_no_flag_of_the_launcher_is_a_flag_of_vllm() -> None:
    own = {name for flag in LAUNCHER_FLAGS.values() for name in flag.names}
    assert own & VLLM_FLAGS == set()
    assert own & {name.partition(".")[0] for name in VLLM_FLAGS} == set()


def test_no_flag_of_vllm_begins_with_a_flag_of_the_launcher() -> None:
    """vLLM's parser accepts abbreviations."""
    own = {name for flag in LAUNCHER_FLAGS.values() for name in flag.names}
    assert [(name, theirs) for name in own for theirs in VLLM_FLAGS if theirs.startswith(name)] == []


def test_words_of_vllm_stay_unchanged_and_in_order() -> None:
    words = "model --unknown=a\tb -x --engine vllm -1 --a_b --startup-report r.json --hf_overrides {} --json -- last"
    split = split_words(words.split(" "))
    assert split.others == ("model", "--unknown=a\tb", "-x", "-1", "--a_b", "--hf_overrides", "{}", "last")
    assert split.own == {"--engine": "vllm", "--startup-report": "r.json", "--json": "true"}


def test_every_word_after_two_dashes_is_vllms() -> None:
    split = split_words(["--", "--engine", "x", "--", "--json"])
    assert split.others == ("--engine", "x", "--", "--json")
    assert split.own == {}


@pytest.mark.parametrize("word", ["--startup-timeout=3", "--startup_timeout=3"])
def test_a_flag_of_the_launcher_may_have_dashes_or_underscores(word: str) -> None:
    assert split_words([word]).own == {"--startup-timeout": "3"}


def test_the_last_value_of_a_flag_counts() -> None:
    assert split_words(["--engine", "vllm", "--engine=embedded"]).own == {"--engine": "embedded"}


def test_a_flag_without_its_value_is_an_error() -> None:
    with pytest.raises(InputError, match="'--startup-report' requires an argument"):
        split_words(["--startup-report"])


def test_an_invalid_value_is_named() -> None:
    with click.Context(click.Command("serve")) as ctx, pytest.raises(InputError, match="--startup-timeout: 'soon'"):
        vllm_options(ctx, ["--startup-timeout", "soon"])


def test_settings_are_converted_and_the_start_method_comes_from_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    words = ["model", "--startup-timeout", "30", "--startup-report", "r", "--prefetch=off", "--prefetch-threads", "3"]
    with click.Context(click.Command("serve")) as ctx:
        options = vllm_options(ctx, words)
    assert options.words == ("model",)
    assert options.start_method == "spawn"
    assert options.startup_timeout_s == 30
    assert options.startup_report == Path("r")
    assert (options.prefetch.mode, options.prefetch.num_threads) == ("off", 3)


def test_the_start_method_is_none_if_the_variable_is_not_set() -> None:
    with click.Context(click.Command("serve")) as ctx:
        assert vllm_options(ctx, []).start_method is None


def test_an_unknown_engine_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"--engine 'vlm' is not one of .* \(did you mean 'vllm'\?\)"):
        choose_engine(["--engine", "vlm"])


@pytest.mark.parametrize(
    ("variable", "words", "engine"),
    [
        ("vllm", [], "vllm"),
        ("embedded", [], "embedded"),
        ("embedded", ["--engine", "vllm"], "vllm"),
        ("vllm", ["--engine", "embedded"], "embedded"),
        ("auto", ["--renderer-inline"], "embedded"),
    ],
)
def test_the_option_takes_precedence_over_the_variable(
    variable: str, words: list[str], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VCLI_ENGINE", variable)
    assert choose_engine(words) == engine


@pytest.mark.parametrize(("is_there", "engine"), [(True, "vllm"), (False, "embedded")], ids=["installed", "missing"])
def test_auto_is_vllm_if_it_is_installed(
    is_there: bool, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_there:
        (tmp_path / "vllm").mkdir()
        (tmp_path / "vllm" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert choose_engine(["model"]) == engine
