"""Words become those that argparse gets in vLLM."""

import json

import pytest

from startup.vllm.preflight.words import WordsError, expand_sizes, parse_size, prepare_words


@pytest.mark.parametrize(
    ("words", "prepared"),
    [
        ("m --max_model_len 5", "m --max-model-len 5"),
        ("m --max_model_len=a_b", "m --max-model-len=a_b"),
        ("--seed 1 --model m", "m --seed 1"),
        ("--seed 1 --model=m", "m --seed 1"),
        ("m -O3", "m --optimization-level 3"),
        ("m -O=2", "m --optimization-level 2"),
        ("m -O 1", "m --optimization-level 1"),
        ("m -tp 2", "m -tp 2"),
    ],
)
def test_words(words, prepared):
    assert prepare_words(words.split()).words == prepared.split()


@pytest.mark.parametrize(
    ("words", "flag", "content"),
    [
        ("--cc.a 1", "--cc", {"a": 1}),
        ("--cc.a.b=x --cc.c true", "--cc", {"a": {"b": "x"}, "c": True}),
        ("--cc.a+ x,y --cc.a+ z", "--cc", {"a": ["x", "y", "z"]}),
        ("--cc_d.size 8k", "--cc-d", {"size": 8000}),
        ("-cc.mode=0", "-cc", {"mode": 0}),
    ],
)
def test_keys_become_an_object_at_the_end(words, flag, content):
    prepared = prepare_words([*words.split(), "--seed", "1"]).words
    assert prepared[:-1] == ["--seed", "1", flag]
    assert json.loads(prepared[-1]) == content


def test_a_dot_in_a_value_is_no_key():
    assert prepare_words(["--share=0.5", "--path", "/a.b"]).words == ["--share=0.5", "--path", "/a.b"]


def test_settings_of_the_file_come_before_the_words(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("seed: 1\nenforce-eager: true\nlora: false\nnames: [a, b]\nempty: []\ncc: {a: 1}\n")
    words = prepare_words(["m", "--seed", "2", "--config", str(path)]).words
    assert words == ["m", "--seed", "1", "--enforce-eager", "--names", "a", "b", "--cc", '{"a": 1}', "--seed", "2"]


def test_the_model_may_be_in_the_file(tmp_path):
    path = tmp_path / "settings.yml"
    path.write_text("model: m\n")
    assert prepare_words(["--config", str(path), "--seed", "2"]).words == ["--model", "m", "--seed", "2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a", "must be a mapping"),
        ("a: [", "is not YAML"),
        ("seed: 1", "no model"),
    ],
    ids=["list", "broken", "no-model"],
)
def test_a_faulty_file_is_an_error(tmp_path, content, message):
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    with pytest.raises(WordsError, match=message):
        prepare_words(["--config", str(path)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("m --config", "needs the path"),
        ("m --config missing.yaml", "cannot be read"),
        ("m --config settings.json", "yaml or .yml"),
        ("m --config a.yaml --config b.yaml", "more than once"),
        ("--model", "--model needs a value"),
        ("m --cc.a", "--cc.a needs a value"),
    ],
)
def test_words_that_end_vllm(words, message):
    with pytest.raises(WordsError, match=message):
        prepare_words(words.split())


def test_a_served_name_needs_a_model_where_vllm_says_so():
    with pytest.raises(WordsError, match="MODEL"):
        prepare_words(["--served-model-name", "a"], needs_model=True)
    assert prepare_words(["--served-model-name", "a"]).words == ["--served-model-name", "a"]
    assert prepare_words(["m", "--served-model-name", "a"], needs_model=True).words[0] == "m"


@pytest.mark.parametrize(
    ("text", "number"), [("8k", 8000), ("8K", 8192), ("1.5k", 1500), (" 12 ", 12), ("1_000", 1000), ("2g", 2 * 10**9)]
)
def test_sizes(text, number):
    assert parse_size(text) == number


@pytest.mark.parametrize("text", ["1.5K", "8kb", "", "k", "0x10"])
def test_no_sizes(text):
    with pytest.raises(ValueError, match=r".*"):
        parse_size(text)


def test_sizes_are_expanded_outside_of_quotes():
    assert expand_sizes('{"name": "8k", "size": 8k}') == '{"name": "8k", "size": 8000}'
