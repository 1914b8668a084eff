import pytest

from startup.settings.serve_arguments import LauncherLine, help_topic, is_for_information, split


def test_every_word_after_two_dashes_is_vllms():
    split = LauncherLine(["--", "--engine", "x", "--", "--json"])
    assert split.engine_arguments == ["--engine", "x", "--", "--json"]
    assert split.options == []


@pytest.mark.parametrize(
    ("line", "pieces"),
    [
        ("--one -x", ["--one -x"]),
        ("--one -- a", ["--one", "-- a"]),
        ("--unknown a", ["--unknown", "a"]),
        ("--one.some_key a", ["--one.some_key a"]),
    ],
)
def test_a_flag_has_as_many_arguments_as_its_values(line, pieces):
    """Lines for which argparse reports an error or finds no flag."""
    assert [" ".join(part.arguments) for part in split(line.split(), {"--one": 1}.get)] == pieces


@pytest.mark.parametrize(
    ("arguments", "topic"),
    [("m --help", ""), ("-h m", ""), ("--help=all", "all"), ("m --port 1", None), ("-- -h", None)],
)
def test_help_is_found_with_its_topic(arguments, topic):
    assert help_topic(arguments.split()) == topic
    assert is_for_information(arguments.split()) == (topic is not None)
