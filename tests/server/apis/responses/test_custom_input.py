"""The text of a custom tool, read from arguments that arrive in pieces."""

from server.apis.responses.tools import CustomInputReader


def read(*pieces: str) -> tuple[list[str], str]:
    """What is shown after each piece and at the end, and the whole text."""
    reader = CustomInputReader()
    shown = [reader.read(piece) for piece in pieces]
    last, whole = reader.finish()
    return [*shown, last], whole


def test_the_text_is_shown_as_it_arrives():
    assert read('{"inp', 'ut": "a', "\\", "nb\\ud83d", '\\ude42"', "}") == (
        ["", "a", "", "\nb", "🙂", "", ""],
        "a\nb🙂",
    )


def test_what_follows_the_text_is_not_shown():
    assert read('{"input": "a"', "}", " ", "b") == (["a", "", "", "", '{"input": "a"} b'], '{"input": "a"} b')


def test_an_escape_that_json_does_not_have_ends_what_is_shown():
    pieces = ('{"input": "a', "\\ux", *["y"] * 20)
    shown, whole = read(*pieces)
    assert "".join(shown[:-1]) == "a"
    assert whole == "".join(pieces)


def test_a_text_behind_many_blanks_is_shown_at_the_end():
    assert read(" " * 1000, '{"input": "a"}') == (["", "", "a"], "a")
