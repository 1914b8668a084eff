"""The registry has typed values, durations and errors with suggestions. It reports all errors at once."""

import os
import re
from pathlib import Path

import pytest

from envs.registry import LOGGING_LEVELS, START_METHODS, Environment, env, unknown_variables, variables
from envs.suggestion import did_you_mean
from envs.variable import EnvError, parse_duration
from startup.logs.setup import PACKAGES

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_variable_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in variables():
        monkeypatch.delenv(variable.name, raising=False)


def test_the_attribute_is_the_variable_which_has_one_sentence_of_description():
    assert all(getattr(Environment, variable.name) is variable for variable in variables())
    assert all(re.fullmatch(r"[A-Z].*\.", variable.description) for variable in variables())


def test_an_unset_or_empty_variable_has_its_default(monkeypatch):
    assert env.VLLM_WORKER_MULTIPROC_METHOD.get() == "forkserver"
    assert env.VLLM_HTTP_TIMEOUT_KEEP_ALIVE.get() == 5
    assert env.VLLM_API_KEY.get() is None
    for _ in range(2):
        assert env.VLLM_ENGINE_READY_TIMEOUT_S.get() == 600
        assert env.VLLM_ENGINE_READY_TIMEOUT_S.source == "default"
        monkeypatch.setenv("VLLM_ENGINE_READY_TIMEOUT_S", "")


_DEV, _OFFLINE = env.VLLM_SERVER_DEV_MODE, env.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("variable", "raw", "value"),
    [
        *((env.VLLM_WORKER_MULTIPROC_METHOD, method, method) for method in START_METHODS),
        *((env.VLLM_LOGGING_LEVEL, level.lower(), level) for level in LOGGING_LEVELS),
        *((_DEV, raw, True) for raw in ("1", "TRUE", "yes", "on")),
        *((_DEV, raw, False) for raw in ("0", "False", "no", "OFF")),
        *((_OFFLINE, raw, raw == "On") for raw in ("On", "y", "enabled", " 1")),  # as the hub's client reads it
        (env.TRANSFORMERS_OFFLINE, "y", False),
        (env.NO_COLOR, "0", True),
        (env.VLLM_CACHE_ROOT, "~/somewhere", Path.home() / "somewhere"),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_value_may_be_spelled_in_its_ways(variable, raw, value):
    with variable.override(raw):
        assert (variable.get(), variable.source) == (value, "environment")


def test_a_former_variable_names_what_replaces_it_and_an_unknown_one_a_similar_name(monkeypatch):
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "FLASHINFER")
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    monkeypatch.setenv("VCLI_LOGGING_LEVEL", "DEBUG")
    assert unknown_variables() == [
        "VCLI_LOGGING_LEVEL is not a variable of vllm-cli (did you mean 'VLLM_LOGGING_LEVEL'?)",
        "VLLM_ATTENTION_BACKEND is not a variable of vLLM (removed: give --attention-backend)",
    ]


@pytest.mark.parametrize(
    ("variable", "raw", "message"),
    [
        *((env.VLLM_HTTP_TIMEOUT_KEEP_ALIVE, raw, "whole number, 0 or more") for raw in ("soon", "-1", "1.5")),
        (env.VLLM_SERVER_DEV_MODE, "maybe", "one of 1, true, yes, on, 0, false"),
        (
            env.VLLM_WORKER_MULTIPROC_METHOD,
            "fokserver",
            "got 'fokserver' .did you mean 'forkserver'",
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error(variable, raw, message):
    with variable.override(raw), pytest.raises(EnvError, match=message):
        variable.get()


def test_cache_folders_are_below_xdg_cache_home(tmp_path):
    with env.XDG_CACHE_HOME.override(str(tmp_path)):
        assert env.VLLM_CACHE_ROOT.get() == tmp_path / "vllm"
        assert env.HF_HUB_CACHE.get() == tmp_path / "huggingface" / "hub"


@pytest.mark.parametrize("path", ["~nobody-of-this-name/cache", "~"])
def test_an_unknown_home_is_no_error(path, monkeypatch):
    """The home is of an unknown user, or of a user without a name and HOME, as in containers."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    with env.VLLM_CACHE_ROOT.override(path):
        assert env.VLLM_CACHE_ROOT.get() == Path({"~": "/"}.get(path, path))


def test_secrets_are_masked_and_so_are_logins_in_urls():
    assert "hf_abc" not in env.HF_TOKEN.show("hf_abc")
    assert env.HF_ENDPOINT.show("https://me:word@mirror:8080/hub") == "https://********@mirror:8080/hub"
    assert env.VLLM_LOGGING_LEVEL.show("INFO") == "INFO"
    assert env.HF_TOKEN.show(None) == ""
    assert [env.VCLI_LEAVE_OUT.show(frozenset(names)) for names in ("", "ba")] == ["", "a,b"]


def test_every_key_and_token_is_a_secret():
    named = [variable for variable in variables() if re.search("KEY|TOKEN", variable.name)]
    others = {variable.name for variable in named if not variable.is_secret}
    assert others == {"HF_TOKEN_PATH", "HF_HUB_DISABLE_IMPLICIT_TOKEN"}


def test_override_restores_the_former_value_even_after_an_error():
    with env.HF_TOKEN.override("outer"):
        with pytest.raises(RuntimeError), env.HF_TOKEN.override(None):
            assert env.HF_TOKEN.get() is None
            raise RuntimeError
        assert os.environ["HF_TOKEN"] == "outer"
    assert "HF_TOKEN" not in os.environ


def test_only_envs_reads_the_environment():
    reading = re.compile(r"environ\.get|environ\[[^\]]+\](?!\s*=)|\bgetenv\(")
    sources = [path for package in PACKAGES if package != "envs" for path in (ROOT / package).rglob("*.py")]
    assert len(sources) > 20
    assert [path for path in sources if reading.search(path.read_text())] == []


def test_the_most_similar_choice_is_suggested():
    """The suggestion ignores case. The dashes of flags do not count as similarity."""
    assert did_you_mean("SPWAN", ("spawn", "fork", "forkserver")) == " (did you mean 'spawn'?)"
    assert did_you_mean("thread", ("spawn", "fork")) == ""
    assert did_you_mean("--prot", ("--model", "--port")) == " (did you mean '--port'?)"
    assert did_you_mean("--xyz", ("--abc", "--x")) == ""
    assert did_you_mean("--port 80", ("--model", "--port")) == " (write --port and its value as two words)"
    assert did_you_mean("--port\u00a080", ("--model", "--port")) == " (write --port and its value as two words)"


@pytest.mark.parametrize(
    ("argument", "character"),
    [
        ("--port\r", "a carriage return (as in files of Windows) at character 7"),
        ("--port ", "a blank at character 7"),
        ("\t--port", "a tab at character 1"),
        ("--po\u200brt", "U+200B (zero width space) at character 5"),
        ("\ufeff--port", "U+FEFF (zero width no-break space) at character 1"),
        ("--p\u043ert", "U+043E (cyrillic small letter o) at character 4"),
        ("\u2014port", "U+2014 (em dash) at character 1"),
    ],
)
def test_the_character_that_makes_a_word_unknown_is_named(argument, character):
    assert did_you_mean(argument, ("--model", "--port")) == f" (it has {character}: write --port)"
    assert did_you_mean("a b", ("ab", "x")) == " (it has a blank at character 2: write ab)"
    assert did_you_mean("Queen 3", ("queen-2", "x")) == " (did you mean 'queen-2'?)"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1", 1), ("90", 90), ("90s", 90), ("10m", 600), ("1h", 3600), ("1.5H", 5400), (" 2d ", 172800)]
    + [(text, None) for text in ("", "0", "0.5", "-1", "10 minutes", "1h30m", "m", "nan", "inf", "1e3", "9" * 400)],
    ids=lambda value: str(value)[:20],
)
def test_a_duration_is_a_number_of_at_least_a_second_with_a_unit(text, seconds):
    if seconds is None:
        with pytest.raises(ValueError, match="at least 1 s such as 90s, 10m or 1h"):
            parse_duration(text)
    else:
        assert parse_duration(text) == seconds
