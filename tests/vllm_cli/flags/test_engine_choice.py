"""The choice of the engine, and the settings of a start of vLLM."""

from pathlib import Path

import click
import pytest

from vllm_cli.errors import InputError
from vllm_cli.flags.engine_choice import choose_engine, vllm_options


@pytest.mark.parametrize("words", [["--startup-report"], ["--startup-report", "--json"]], ids=" ".join)
def test_a_flag_without_its_value_is_an_error(words):
    with pytest.raises(InputError, match="'--startup-report' requires an argument"):
        choose_engine(words)


def test_an_invalid_value_is_named():
    with click.Context(click.Command("serve")) as ctx, pytest.raises(InputError, match="--startup-timeout: 'soon'"):
        vllm_options(ctx, ["--startup-timeout", "soon"])


def test_settings_are_converted_and_the_start_method_comes_from_the_variable(monkeypatch):
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    words = ["model", "--startup-timeout", "30", "--startup-report", "r", "--prefetch=off"]
    with click.Context(click.Command("serve")) as ctx:
        options = vllm_options(ctx, words)
    assert options.words == ("model",)
    assert options.start_method == "spawn"
    assert options.startup_timeout_s == 30
    assert options.startup_report == Path("r")
    assert options.prefetch.mode == "off"


def test_the_start_method_is_the_forkserver_if_the_variable_is_not_set():
    with click.Context(click.Command("serve")) as ctx:
        assert vllm_options(ctx, []).start_method == "forkserver"


def test_an_unknown_engine_is_an_error_with_a_suggestion():
    with pytest.raises(InputError, match=r"--engine 'vlm' is not one of .* \(did you mean 'vllm'\?\)"):
        choose_engine(["--engine", "vlm"])


@pytest.mark.parametrize(
    ("variable", "words", "engine"),
    [
        ("vllm", [], "vllm"),
        ("embedded", [], "embedded"),
        ("embedded", ["--engine", "vllm"], "vllm"),
        ("vllm", ["--engine", "embedded"], "embedded"),
    ],
)
def test_the_option_takes_precedence_over_the_variable(variable, words, engine, monkeypatch):
    monkeypatch.setenv("VCLI_ENGINE", variable)
    assert choose_engine(words) == engine


@pytest.mark.parametrize(("is_there", "engine"), [(True, "vllm"), (False, "embedded")], ids=["installed", "missing"])
def test_auto_is_vllm_if_it_is_installed(is_there, engine, tmp_path, monkeypatch):
    if is_there:
        (tmp_path / "vllm").mkdir()
        (tmp_path / "vllm" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert choose_engine(["model"]) == engine
