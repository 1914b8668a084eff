"""Which engine a command line is for, and which of its words are vLLM's."""

from pathlib import Path

import click
import pytest

from vllm_cli.errors import InputError
from vllm_cli.serve.engine_choice import OWN_WITH_VLLM, choose_engine, split_words, vllm_options

VLLM_FLAGS = set((Path(__file__).parent / "vllm_0_32_flags.txt").read_text().split())


def test_own_flags_are_none_of_vllms() -> None:
    own = {name for flag in OWN_WITH_VLLM for name in flag.names}
    assert own & VLLM_FLAGS == set()
    assert own & {name.partition(".")[0] for name in VLLM_FLAGS} == set()


def test_own_flags_are_not_the_beginning_of_one_of_vllms() -> None:
    """Where a parser takes abbreviations, they could be meant."""
    own = {name for flag in OWN_WITH_VLLM for name in flag.names}
    assert [(name, theirs) for name in own for theirs in VLLM_FLAGS if theirs.startswith(name)] == []


def test_others_words_stay_in_order_and_untouched() -> None:
    words = "model --unknown=a\tb -x --engine vllm -1 --a_b --startup-report r.json --hf_overrides {} --json -- last"
    split = split_words(words.split(" "))
    assert split.others == ("model", "--unknown=a\tb", "-x", "-1", "--a_b", "--hf_overrides", "{}", "last")
    assert split.own == {"--engine": "vllm", "--startup-report": "r.json", "--json": "true"}


def test_everything_behind_two_dashes_is_vllms() -> None:
    split = split_words(["--", "--engine", "x", "--", "--json"])
    assert split.others == ("--engine", "x", "--", "--json")
    assert split.own == {}


@pytest.mark.parametrize("word", ["--startup-timeout=3", "--startup_timeout=3"])
def test_own_flag_is_known_with_dashes_and_underscores(word: str) -> None:
    assert split_words([word]).own == {"--startup-timeout": "3"}


def test_own_flag_counts_as_it_was_last_given() -> None:
    assert split_words(["--engine", "vllm", "--engine=embedded"]).own == {"--engine": "embedded"}


def test_own_flag_without_its_value_is_an_error() -> None:
    with pytest.raises(InputError, match="'--startup-report' requires an argument"):
        split_words(["--startup-report"])


def test_value_that_makes_no_sense_is_named() -> None:
    with click.Context(click.Command("serve")) as ctx, pytest.raises(InputError, match="--startup-timeout: 'soon'"):
        vllm_options(ctx, ["--startup-timeout", "soon"])


def test_settings_are_converted_and_start_method_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    words = ["model", "--startup-timeout", "30", "--startup-report", "r", "--prefetch=off", "--prefetch-threads", "3"]
    with click.Context(click.Command("serve")) as ctx:
        options = vllm_options(ctx, words)
    assert options.words == ("model",)
    assert options.start_method == "spawn"
    assert options.startup_timeout_s == 30
    assert options.startup_report == Path("r")
    assert (options.prefetch.mode, options.prefetch.num_threads) == ("off", 3)


def test_start_method_is_none_where_nobody_has_set_it() -> None:
    with click.Context(click.Command("serve")) as ctx:
        assert vllm_options(ctx, []).start_method is None


def test_unknown_engine_is_an_error_with_a_guess() -> None:
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
def test_option_counts_before_variable(
    variable: str, words: list[str], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VCLI_ENGINE", variable)
    assert choose_engine(words) == engine


@pytest.mark.parametrize(("is_there", "engine"), [(True, "vllm"), (False, "embedded")], ids=["installed", "missing"])
def test_auto_is_vllm_where_it_can_be_found(
    is_there: bool, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_there:
        (tmp_path / "vllm").mkdir()
        (tmp_path / "vllm" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert choose_engine(["model"]) == engine
