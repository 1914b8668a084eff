"""Variables that a template's imports have read or set make a start cold if they differ."""

import os
from pathlib import Path

import pytest

from startup.standby.import_state import ImportEnvironment, recorded_reads, written_since
from startup.standby.sockets import VLLM_EAGER, template_kind
from tests.support.cli import run_python


@pytest.mark.parametrize(
    "expression",
    ["os.environ['NAME'] or 1", "os.environ.get('NAME')", "os.getenv('NAME')", "'NAME' in os.environ",
     "os.environ.setdefault('NAME', '1')", "os.environb.get(b'NAME')", "os.path.expandvars('$NAME')"],
)  # fmt: skip
def test_a_read_by_name_is_recorded(expression, monkeypatch):
    monkeypatch.setenv("NAME", "value")
    with recorded_reads() as names:
        eval(expression)
    assert names == {"NAME"}
    assert type(os.environ) is type(os.environb) is os._Environ


@pytest.mark.parametrize(
    "expression",
    ["dict(os.environ)", "os.environ.copy()", "list(os.environ)", "{**os.environ}", "list(os.environ.items())"],
)
def test_a_listing_is_no_read(expression):
    with recorded_reads() as names:
        eval(expression)
    assert names == set()


def test_recording_ends_after_an_error():
    with pytest.raises(ValueError, match="wrong"), recorded_reads():
        raise ValueError("wrong")
    assert type(os.environ) is os._Environ


def environment(given: dict[str, str], *read: str, **written: str | None) -> ImportEnvironment:
    return ImportEnvironment(given, frozenset(read), written)


def test_equal_environments_are_warm():
    assert environment({"READ": "1", "LD_PRELOAD": "a"}, "READ").why_cold({"READ": "1", "LD_PRELOAD": "a"}) is None


@pytest.mark.parametrize("value", ["secret-2", "", None], ids=["changed", "empty", "removed"])
def test_a_variable_that_was_read_must_be_equal(value):
    start = {} if value is None else {"READ": value}
    assert environment({"READ": "secret"}, "READ").why_cold(start) == "READ differs, which was read on import"
    assert environment(start, "READ").why_cold({"READ": "secret"}) == "READ differs, which was read on import"


def test_a_variable_that_was_not_read_may_differ():
    assert environment({"OTHER": "1"}, "READ").why_cold({"MORE": "2"}) is None


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONHASHSEED", "PYTHONPATH", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES",
             "OMP_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY", "LRU_CACHE_CAPACITY", "PYTORCH_ALLOC_CONF"]
)  # fmt: skip
def test_a_variable_of_the_loader_or_of_a_library_must_be_equal(name):
    assert environment({}).why_cold({name: "1"}) == f"{name} differs, which libraries read when they are loaded"


@pytest.mark.parametrize(
    "name", ["LANG", "LC_TIME", "HF_TOKEN", "TZ", "PATH", "VLLM_LOGGING_LEVEL", "COLUMNS", "PYTHONSTARTUP"]
)
def test_a_variable_that_is_read_again_may_differ(name):
    assert environment({}, name).why_cold({name: "1"}) is None
    assert environment({name: "1"}, name).why_cold({name: "2"}) is None


@pytest.mark.parametrize(
    ("before", "after", "is_warm"),
    [
        (None, "0", True), ("0", "1,2", True), ("0", None, True),
        (None, "", False), ("0", "-1", False), ("", "0", False),
    ],
)  # fmt: skip
def test_other_gpus_are_warm_but_not_none(before, after, is_warm):
    old, new = ({} if value is None else {"CUDA_VISIBLE_DEVICES": value} for value in (before, after))
    assert (environment(old, "CUDA_VISIBLE_DEVICES").why_cold(new) is None) == is_warm


def test_variables_that_imports_set_are_kept():
    imported = environment({"GIVEN": "1", "GONE": "3"}, SET="2", GONE=None)
    assert imported.why_cold({"OTHER": "4", "GONE": "3"}) is None
    assert imported.applied_to({"OTHER": "4", "GONE": "3"}) == {"SET": "2", "OTHER": "4"}


def test_a_variable_that_imports_set_must_be_equal():
    """The imports may have set a default, which a given value would have replaced."""
    reason = environment({}, DEFAULT="default").why_cold({"DEFAULT": "given"})
    assert reason == "DEFAULT differs, which the standby's imports have set"


def test_what_imports_have_set_or_removed_is_found(monkeypatch):
    monkeypatch.setenv("REMOVED", "1")
    before = dict(os.environ)
    monkeypatch.setenv("SET", "2")
    monkeypatch.delenv("REMOVED")
    assert written_since(before) == {"SET": "2", "REMOVED": None}


def test_real_imports_are_recorded():
    code = (
        "from startup.standby.import_state import ImportEnvironment, recorded_reads\n"
        "with recorded_reads() as names:\n    import huggingface_hub.constants\n"
        "imported = ImportEnvironment({}, frozenset(names), {})\n"
        "names = ('HF_HOME', 'HF_ENDPOINT', 'HOME', 'HF_HUB_OFFLINE', 'HF_UNKNOWN', 'SSH_CLIENT')\n"
        "print(*(name for name in names if imported.why_cold({name: '1'})))\n"
    )
    done = run_python(code, environment={"PYTHONPATH": str(Path.cwd())}, check=True)
    assert done.stdout.split() == ["HF_HOME", "HF_ENDPOINT", "HOME"]


@pytest.mark.parametrize("word", ["--preflight-only", "--preflight_only", "--help", "--version"])
def test_commands_that_do_not_start_vllm_need_no_template(word):
    assert template_kind(["--engine", "vllm", "--enforce-eager", word]) is None
    assert template_kind(["--engine", "vllm", "--enforce-eager"]) == VLLM_EAGER
