"""The flags that limit clients and requests: table, messages and documentation name them alike."""

from pathlib import Path

import pytest

from server.errors import ConfigError
from server.limits import LimitsConfig, flag_of
from vllm_cli.flags.supported import GROUPS

DOCS = (Path(__file__).parents[3] / "docs" / "limits.md").read_text()


@pytest.mark.parametrize("flag", GROUPS["Limits"], ids=lambda flag: flag.name)
def test_messages_and_docs_name_the_flag_of_the_field(flag) -> None:
    (path,) = flag.fields
    assert flag_of(path.removeprefix("limits.")) == flag.name
    assert f"`{flag.name}`" in DOCS


def test_values_are_typed(parse) -> None:
    limits = parse(
        *("m", "--http-max-body-size", "1MiB", "--max-num-queued-reqs", "1k", "--http-request-timeout", "0"),
        *("--h11-max-header-count", "9", "--http-max-held-size", "2G"),
    ).limits
    assert (limits.max_body_bytes, limits.max_queued_requests, limits.request_timeout_s) == (1 << 20, 1000, 0.0)
    assert (limits.max_headers, limits.max_held_bytes) == (9, 2 << 30)
    assert limits.max_prompts == LimitsConfig().max_prompts


@pytest.mark.parametrize(
    ("variable", "field"),
    [
        ("VLLM_MAX_N_SEQUENCES", "max_choices"),
        ("VLLM_MAX_COMPLETION_PROMPTS", "max_prompts"),
        ("VLLM_MAX_STOP_STRINGS", "max_stop_strings"),
    ],
)
def test_variables_of_vllm_set_limits(parse, monkeypatch, variable: str, field: str) -> None:
    assert getattr(parse("m").limits, field) == getattr(LimitsConfig(), field)
    monkeypatch.setenv(variable, "16384")
    assert getattr(parse("m").limits, field) == 16384
    assert f"`{variable}`" in DOCS


def test_a_flag_takes_precedence_over_a_variable_and_that_over_a_file(parse, monkeypatch, tmp_path) -> None:
    (tmp_path / "serve.yaml").write_text("http-max-stop-strings: 3")
    in_file = ("--config", str(tmp_path / "serve.yaml"))
    assert parse("m", *in_file).limits.max_stop_strings == 3
    monkeypatch.setenv("VLLM_MAX_STOP_STRINGS", "4")
    assert parse("m", *in_file).limits.max_stop_strings == 4
    assert parse("m", "--http-max-stop-strings", "9").limits.max_stop_strings == 9


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--http-max-prompts", "0", "1 or more, got 0"),
        ("--http-header-timeout", "0", "above 0, got 0.0"),
        ("--http-send-timeout", "-1", "above 0, got -1.0"),
        ("--http-request-timeout", "-1", "0 or more, got -1.0"),
        ("--max-num-queued-reqs", "-1", "0 or more, got -1"),
    ],
)
def test_a_limit_out_of_range_names_the_flag(parse, flag: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"{flag} must be {expected}"):
        parse("m", f"{flag}={value}")
