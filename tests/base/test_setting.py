import math
from dataclasses import dataclass, fields
from typing import Any

import pytest

from base.errors import ConfigError
from base.setting import check_ranges, from_variable, option_name, setting
from envs.registry import env


@dataclass(frozen=True, kw_only=True)
class Example:
    at_least: int | None = setting(1, "--at-least", "A count.", minimum=1)
    more_than: float = setting(1.0, "--more-than", "A time.", above=0)
    share: float = setting(0.5, "--share", "A share.", above=0, maximum=1)
    between: int = setting(5, "--between", "A port.", minimum=0, maximum=9)
    finite: float = setting(1.0, "--finite", "A time that ends.", minimum=0, below=math.inf)
    worded: int = setting(0, "--worded", "A level.", minimum=0, maximum=2, expected="0, 1 or 2")
    by_variable: int = from_variable(env.VLLM_MAX_N_SEQUENCES, minimum=1)
    options: dict[str, Any] = setting({}, "--options", "Anything.")

    def __post_init__(self) -> None:
        check_ranges(self)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("at_least", 0, "--at-least must be 1 or more, got 0"),
        ("more_than", 0.0, "--more-than must be above 0, got 0.0"),
        ("more_than", math.nan, "--more-than must be above 0, got nan"),
        ("share", 0.0, "--share must be above 0 and at most 1, got 0.0"),
        ("share", 1.5, "--share must be above 0 and at most 1, got 1.5"),
        ("between", 10, "--between must be between 0 and 9, got 10"),
        ("finite", math.inf, "--finite must be 0 or more, got inf"),
        ("worded", 3, "--worded must be 0, 1 or 2, got 3"),
        ("by_variable", 0, "VLLM_MAX_N_SEQUENCES must be 1 or more, got 0"),
    ],
)
def test_a_value_out_of_range_is_an_error_with_range_and_value(name, value, message):
    with pytest.raises(ConfigError) as caught:
        Example(**{name: value})
    assert str(caught.value) == message


def test_limits_and_none_are_accepted_and_a_setting_without_a_flag_is_that_of_its_variable():
    assert Example(at_least=None, share=1, between=9, worded=2).at_least is None
    assert Example(more_than=math.inf).more_than == math.inf
    assert Example().by_variable == env.VLLM_MAX_N_SEQUENCES.default
    by_name = {field.name: field for field in fields(Example)}
    assert option_name(by_name["by_variable"]) == "VLLM_MAX_N_SEQUENCES"
    assert Example().options is not Example().options, "every instance has its own"
