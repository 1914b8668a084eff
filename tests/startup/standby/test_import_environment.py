"""Variables that a template's imports have read or set make a start cold if they differ."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from startup.settings.serve_words import ServeWords
from startup.standby.import_state import ImportEnvironment, recorded_reads, written_since
from startup.standby.sockets import VLLM_EAGER, template_kind
from tests.support.cli import run_python


@pytest.mark.parametrize(
    ("expression", "read"),
    [
        *((expression, {"NAME"}) for expression in (
            "os.environ['NAME'] or 1", "os.environ.get('NAME')", "os.getenv('NAME')", "'NAME' in os.environ",
            "os.environ.setdefault('NAME', '1')", "os.environb.get(b'NAME')", "os.path.expandvars('$NAME')")),
        *((expression, set()) for expression in (
            "dict(os.environ)", "os.environ.copy()", "list(os.environ)", "{**os.environ}",
            "list(os.environ.items())", "1 / 0")),
    ],
)  # fmt: skip
def test_a_read_by_name_is_recorded_but_no_listing(expression, read, monkeypatch):
    monkeypatch.setenv("NAME", "value")
    with suppress(ZeroDivisionError), recorded_reads() as names:
        eval(expression)
    assert names == read
    assert type(os.environ) is type(os.environb) is os._Environ


_LOADED = (
    "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONHASHSEED", "PYTHONPATH", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES",
    "OMP_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY", "LRU_CACHE_CAPACITY", "PYTORCH_ALLOC_CONF",
)  # fmt: skip
_READ_AGAIN = ("LANG", "LC_TIME", "HF_TOKEN", "TZ", "PATH", "VLLM_LOGGING_LEVEL", "COLUMNS", "PYTHONSTARTUP")
_GPUS = "CUDA_VISIBLE_DEVICES"
_NO_GPUS = f"{_GPUS} differs: it hides all GPUs, or did so at the standby's start"
_WAS_READ = "READ differs, which was read on import"


@pytest.mark.parametrize(
    ("given", "read", "written", "start", "reason"),
    [
        pytest.param("READ=1 LD_PRELOAD=a", "READ", {}, "READ=1 LD_PRELOAD=a", None, id="equal"),
        pytest.param("OTHER=1", "READ", {}, "MORE=2", None, id="not-read"),
        *(("READ=secret", "READ", {}, start, _WAS_READ) for start in ("READ=secret-2", "READ=", "")),
        *((given, "READ", {}, "READ=secret", _WAS_READ) for given in ("READ=secret-2", "READ=", "")),
        *(("", "", {}, f"{name}=1", f"{name} differs, which libraries read when they are loaded") for name in _LOADED),
        *((given, name, {}, f"{name}=2", None) for name in _READ_AGAIN for given in ("", f"{name}=1")),
        *((old, _GPUS, {}, new, None) for old, new in (("", f"{_GPUS}=0"), (f"{_GPUS}=0", f"{_GPUS}=1,2"))),
        (f"{_GPUS}=0", _GPUS, {}, "", None),
        *((old, _GPUS, {}, new, _NO_GPUS) for old, new in (("", f"{_GPUS}="), (f"{_GPUS}=0", f"{_GPUS}=-1"))),
        (f"{_GPUS}=", _GPUS, {}, f"{_GPUS}=0", _NO_GPUS),
        pytest.param("GIVEN=1 GONE=3", "", {"SET": "2", "GONE": None}, "OTHER=4 GONE=3", None, id="set"),
        # The imports may have set a default, which a given value would have replaced.
        ("", "", {"DEFAULT": "1"}, "DEFAULT=2", "DEFAULT differs, which the standby's imports have set"),
    ],
)
def test_a_start_is_cold_if_the_imports_depend_on_a_variable_that_differs(given, read, written, start, reason):
    given, start = (dict(word.split("=", 1) for word in words.split()) for words in (given, start))
    assert ImportEnvironment(given, frozenset(read.split()), written).why_cold(start) == reason


def test_variables_that_imports_set_are_kept():
    imported = ImportEnvironment({"GIVEN": "1"}, frozenset(), {"SET": "2", "GONE": None})
    assert imported.applied_to({"OTHER": "4", "GONE": "3"}) == {"SET": "2", "OTHER": "4"}


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
    assert template_kind(ServeWords(["--engine", "vllm", "--enforce-eager", word])) is None
    assert template_kind(ServeWords(["--engine", "vllm", "--enforce-eager"])) == VLLM_EAGER
