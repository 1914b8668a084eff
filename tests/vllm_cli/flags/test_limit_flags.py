"""The flags that limit clients and requests: table, messages and documentation name them alike."""

from pathlib import Path

import pytest

from base.errors import ConfigError
from server.limits import LimitsConfig, flag_of
from vllm_cli.flags.supported import GROUPS

DOCS = (Path(__file__).parents[3] / "docs" / "api.md").read_text().partition("\n## Limits\n")[2]


@pytest.mark.parametrize("flag", GROUPS["Limits"], ids=lambda flag: flag.name)
def test_messages_and_docs_name_the_flag_of_the_field(flag):
    (path,) = flag.fields
    assert flag_of(path.removeprefix("limits.")) == flag.name
    assert f"`{flag.name}`" in DOCS


@pytest.mark.parametrize(
    ("variable", "field"),
    [
        ("VLLM_MAX_N_SEQUENCES", "max_choices"),
        ("VLLM_MAX_COMPLETION_PROMPTS", "max_prompts"),
        ("VLLM_MAX_STOP_STRINGS", "max_stop_strings"),
    ],
)
def test_variables_of_vllm_set_limits(parse, monkeypatch, variable, field):
    assert getattr(parse("m").limits, field) == getattr(LimitsConfig(), field)
    monkeypatch.setenv(variable, "16384")
    assert getattr(parse("m").limits, field) == 16384
    assert f"`{variable}`" in DOCS


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--http-max-prompts", "0", "1 or more, got 0"),
        ("--http-header-timeout", "0", "above 0, got 0.0"),
        ("--http-send-timeout", "-1", "above 0, got -1.0"),
        ("--max-num-queued-reqs", "-1", "0 or more, got -1"),
    ],
)
def test_a_limit_out_of_range_names_the_flag(parse, flag, value, expected):
    with pytest.raises(ConfigError, match=f"{flag} must be {expected}"):
        parse("m", f"{flag}={value}")
