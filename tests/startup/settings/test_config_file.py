"""References to variables in a `--config` file: which are replaced by values, and which stay."""

import pytest
import yaml

from startup.settings.config_file import ConfigFile


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    for name, value in {"HOST": "example", "PORT": "8001", "EMPTY": "", "TRICKY": "${HOST} $${PORT} }"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("UNSET", raising=False)


def _value(text):
    file = _read(yaml.safe_dump({"key": text}))
    return file.settings["key"], file.missing


def _read(text):
    return ConfigFile.of("serve.yaml", yaml.safe_load(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${HOST}", "example"),
        ("http://${HOST}:${PORT}/v1", "http://example:8001/v1"),
        ("${UNSET:-default}", "default"),
        ("${UNSET-default}", "default"),
        ("${EMPTY:-default}", "default"),
        ("${EMPTY-default}", ""),
        ("${EMPTY}", ""),
        ("${HOST:-default}", "example"),
        ("${UNSET:-}", ""),
        ("${UNSET:-${HOST}:${UNSET:-${PORT}}}", "example:8001"),
        ("${HOST:?must be set}", "example"),
        ("$${HOST}", "${HOST}"),
        ("${UNSET:-$${HOST}}", "${HOST}"),
        ("${TRICKY}", "${HOST} $${PORT} }"),
        ("${UNSET:-${TRICKY}}", "${HOST} $${PORT} }"),
        ("$HOST $$ $(HOST) ${} ${1} ${a b} ${a.b} ${HOST", "$HOST $$ $(HOST) ${} ${1} ${a b} ${a.b} ${HOST"),
    ],
)
def test_a_reference_is_replaced_as_by_compose(text, value):
    assert _value(text) == (value, ())


@pytest.mark.parametrize(
    ("value", "typed"),
    [
        ("true", True),
        ("false", False),
        ("3", 3),
        ("0.5", 0.5),
        ("null", None),
        *((text, text) for text in ("0755", "", "1_000", "1.10", "12:30:45", "yes", "~", "NaN", "2024-01-01", "[1]")),
    ],
)
def test_only_what_json_would_write_so_is_no_text(value, typed, monkeypatch):
    monkeypatch.setenv("HOST", value)
    assert _value("${HOST}") == (typed, ())


def test_a_reference_without_a_value_stays_and_is_named_by_its_key():
    text = "a: ${UNSET}/x\nb:\n  c: ['${UNSET:?give the host}', '${EMPTY:?}']\nd: ${PORT}\n"
    replaced = _read(text)
    assert replaced.settings == {"a": "${UNSET}/x", "b": {"c": ["${UNSET:?give the host}", "${EMPTY:?}"]}, "d": 8001}
    assert replaced.missing == ("a: UNSET is not set", "b.c: UNSET is not set (give the host)", "b.c: EMPTY is not set")


@pytest.mark.parametrize(
    ("text", "num_refused"),
    [
        ("port: ${UNSET}", 0),
        ("port: ${UNSET:?why}", 1),
        ("port: ${UNSET?}", 1),
        ("port: ${HOST?why}", 0),
        ("api-key: sk-${UNSET}", 1),
        ("hf_token: ${UNSET}", 1),
        ("a: {password: ['${UNSET}', '${UNSET}']}", 2),
    ],
)
def test_no_engine_reads_a_required_or_a_secret_reference_as_a_text(text, num_refused):
    assert len(_read(text).refused) == num_refused


@pytest.mark.parametrize("text", ["a: 1\n", "a: $HOST # ${HOST}\n", "a: ${UNSET}\n", "", "${HOST: 1}"])
def test_a_file_in_which_nothing_is_replaced_is_the_same(text):
    assert (_read(text).content, _read(text).is_changed) == (yaml.safe_load(text), False)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"- a", "must be a mapping of flag names to values"),
        (b"a: [\n# ${HOST}", "is not YAML: while parsing"),
        (b"- &a [*a, '${HOST}']\n", "is nested too deeply"),
        (b"\xff\xfe\x00", "is not a text file in UTF-8"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_has_a_problem_and_no_settings(content, problem, tmp_path):
    path = tmp_path / "serve.yaml"
    if content is not None:
        path.write_bytes(content)
    file = ConfigFile.read(str(path))
    assert (file.problem or "").startswith(problem)
    assert file.settings == {}


def test_values_of_any_form_come_out_as_they_are(monkeypatch):
    for value in ("a: b #c", "line\nline", "'\"", "- x", "\x07é", "\udce9", "a" * 300 + " b"):
        monkeypatch.setenv("HOST", value)
        assert _value("${HOST}") == (value, ())
