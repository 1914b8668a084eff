import pytest

from envs.variable import parse_duration, spell_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1", 1), ("90", 90), ("90s", 90), ("10m", 600), ("1h", 3600), ("1.5H", 5400), (" 2d ", 172800)],
)
def test_a_duration_is_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0.5", "-1", "10 minutes", "1h30m", "m", "nan", "inf", "1e3", "9" * 400])
def test_other_texts_and_less_than_a_second_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="at least 1 s such as 90s, 10m or 1h"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["90s", "10m", "1h", "2d", "1.5s"])
def test_a_duration_is_spelt_as_it_was_given(text: str) -> None:
    assert spell_duration(parse_duration(text)) == text
