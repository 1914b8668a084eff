"""The recorder and the decision, in processes that import modules which read variables."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from startup.standby.environment_reads import EnvironmentReads
from startup.standby.environment_recorder import EnvironmentAccesses, record_environment_reads

_ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "expression",
    [
        pytest.param("os.environ['NAME']", id="item"),
        pytest.param("os.environ.get('NAME')", id="get"),
        pytest.param("'NAME' in os.environ", id="in"),
        pytest.param("os.getenv('NAME')", id="getenv"),
        pytest.param("os.getenvb(b'NAME')", id="getenvb"),
        pytest.param("os.environ.setdefault('NAME', 'x')", id="setdefault"),
        pytest.param("os.environ.pop('NAME', None)", id="pop"),
    ],
)
@pytest.mark.parametrize("environment", [{}, {"NAME": "value"}], ids=["missing", "set"])
def test_a_read_by_name_is_recorded(expression: str, environment: dict[str, str]) -> None:
    assert _names_read_by(expression, environment) == {"NAME"}


@pytest.mark.parametrize(
    "expression",
    ["dict(os.environ)", "os.environ.copy()", "list(os.environ)", "{**os.environ}", "list(os.environ.items())"],
)
def test_a_listing_is_no_read(expression: str) -> None:
    assert _names_read_by(expression, {"NAME": "value", "OTHER": "value"}) == set()


def _names_read_by(expression: str, environment: dict[str, str]) -> set[str]:
    code = (
        f"import os, sys; sys.path.append({str(_ROOT)!r})\n"
        "from startup.standby.environment_recorder import record_environment_reads\n"
        f"with record_environment_reads() as accesses:\n    {expression} if True else None\n"
        "assert type(os.environ) is type(os.environb) is os._Environ\n"
        "os.environ['LATER'] = os.environ.get('UNRECORDED', '')\n"
        "print(*sorted(accesses.names))"
    ).replace("os.environ['NAME'] if", "os.environ.get('NAME') and os.environ['NAME'] if")
    result = subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True, check=True)
    return set(result.stdout.split())


def test_recording_ends_after_an_error() -> None:
    with pytest.raises(ValueError, match="wrong"), record_environment_reads():
        raise ValueError("wrong")
    assert type(os.environ) is os._Environ


def reads_of(
    environment: dict[str, str], *names: str, written: dict[str, str | None] | None = None
) -> EnvironmentReads:
    accesses = EnvironmentAccesses()
    accesses.names.update(names)
    accesses.written.update(written or {})
    return EnvironmentReads(environment, accesses)


def test_equal_environments_are_warm() -> None:
    reads = reads_of({"READ": "1"}, "READ")
    assert reads.why_cold({"READ": "1"}) is None


@pytest.mark.parametrize("environment", [{}, {"READ": "2"}, {"READ": ""}], ids=["removed", "changed", "empty"])
def test_a_variable_that_was_read_must_be_equal(environment: dict[str, str]) -> None:
    reads = reads_of({"READ": "1"}, "READ")
    assert reads.why_cold(environment) == "READ differs, which was read on import"


def test_a_variable_that_was_read_but_not_set_must_not_be_set() -> None:
    assert reads_of({}, "READ").why_cold({"READ": ""}) is not None


def test_a_variable_that_was_not_read_may_differ() -> None:
    assert reads_of({"OTHER": "1"}, "READ").why_cold({"MORE": "2"}) is None


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONHASHSEED", "PYTHONPATH", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES",
             "OMP_PROC_BIND", "KMP_AFFINITY", "GOMP_CPU_AFFINITY", "LRU_CACHE_CAPACITY", "PYTORCH_ALLOC_CONF"]
)  # fmt: skip
def test_a_variable_of_the_loader_or_of_a_library_must_be_equal(name: str) -> None:
    assert reads_of({}).why_cold({name: "1"}) == f"{name} differs, which libraries read when they are loaded"


@pytest.mark.parametrize(
    "name", ["TERM", "SSH_TTY", "PWD", "VSCODE_PID", "HF_TOKEN", "OMP_NUM_THREADS", "TZ", "PATH", "VLLM_LOGGING_LEVEL"]
)
def test_a_variable_that_is_applied_later_may_differ(name: str) -> None:
    assert reads_of({}, name).why_cold({name: "1"}) is None


def test_the_reason_has_no_value() -> None:
    reason = reads_of({"READ": "secret-1"}, "READ").why_cold({"READ": "secret-2"})
    assert reason is not None
    assert "secret" not in reason


def test_changed_variables_are_listed_with_their_new_values() -> None:
    reads = reads_of({"A": "1", "B": "1", "C": "1"})
    assert reads.changed({"A": "1", "B": "2", "D": "3"}) == {"B": "2", "C": "", "D": "3"}


@pytest.mark.parametrize(
    ("name", "before", "after", "is_warm"),
    [
        ("OMP_NUM_THREADS", None, "4", True),
        ("OMP_NUM_THREADS", "4", "2", True),
        ("OMP_NUM_THREADS", "4", None, False),
        ("OMP_NUM_THREADS", None, "4,2", False),
        ("CUDA_VISIBLE_DEVICES", None, "0", True),
        ("CUDA_VISIBLE_DEVICES", "0", "1,2", True),
        ("CUDA_VISIBLE_DEVICES", "0", None, True),
        ("CUDA_VISIBLE_DEVICES", None, "", False),
        ("CUDA_VISIBLE_DEVICES", "0", "-1", False),
        ("CUDA_VISIBLE_DEVICES", "", "0", False),
        ("LANG", "en_US.UTF-8", "de_DE.utf8", True),
        ("LANG", "en_US.UTF-8", "en_US.ISO-8859-1", False),
        ("LANG", "C.UTF-8", None, False),
        ("LC_ALL", None, "POSIX", False),
        ("LC_ALL", "C.UTF-8", "de_DE.UTF-8@euro", True),
        ("LC_TIME", None, "de_DE.ISO-8859-1", True),
    ],
)
def test_some_values_can_be_applied_later(name: str, before: str | None, after: str | None, is_warm: bool) -> None:
    old, new = ({} if value is None else {name: value} for value in (before, after))
    assert (reads_of(old, name).why_cold(new) is None) == is_warm


def test_a_locale_variable_that_another_one_overrides_may_differ() -> None:
    reads = reads_of({"LC_ALL": "C.UTF-8", "LANG": "en_US.ISO-8859-1"})
    assert reads.why_cold({"LC_ALL": "C.UTF-8", "LANG": "POSIX"}) is None


def test_variables_that_imports_set_are_kept() -> None:
    reads = reads_of({"GIVEN": "1"}, written={"SET": "2", "REMOVED": None})
    assert reads.resulting_environment({"REMOVED": "3", "OTHER": "4"}) == {"SET": "2", "OTHER": "4"}


def test_a_default_that_imports_set_does_not_replace_a_given_value() -> None:
    reads = reads_of({}, "DEFAULT", "EXTENDED", written={"DEFAULT": "default"})
    assert reads.resulting_environment({}) == {"DEFAULT": "default"}
    assert reads.resulting_environment({"DEFAULT": "given"}) == {"DEFAULT": "given"}
    assert reads.changed({"DEFAULT": "given"}) == {"DEFAULT": "given"}


def test_a_value_that_imports_extend_is_extended_for_an_equal_environment() -> None:
    reads = reads_of({"EXTENDED": "b"}, "EXTENDED", written={"EXTENDED": "a:b"})
    assert reads.resulting_environment({"EXTENDED": "b"}) == {"EXTENDED": "a:b"}


def test_a_variable_that_imports_set_regardless_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "given")
    with record_environment_reads() as accesses:
        os.environ["NAME"] = "set"
        assert os.environ["NAME"] == "set"
        os.environ.setdefault("DEFAULT", "1")
        del os.environ["DEFAULT"]
    assert accesses.names == {"DEFAULT"}
    assert accesses.written == {"NAME": "set", "DEFAULT": None}
    assert EnvironmentReads({}, accesses).why_cold({"NAME": "other"}) is None


def test_real_imports_are_recorded() -> None:
    code = (
        f"import sys; sys.path.append({str(_ROOT)!r})\n"
        "from startup.standby.environment_recorder import record_environment_reads\n"
        "from startup.standby.environment_reads import EnvironmentReads\n"
        "with record_environment_reads() as accesses:\n    import huggingface_hub.constants\n"
        "reads = EnvironmentReads({}, accesses)\n"
        "for name in ('HF_HOME', 'HF_ENDPOINT', 'HF_HUB_OFFLINE', 'HF_UNKNOWN', 'SSH_CLIENT'):\n"
        "    print(name, reads.why_cold({name: '1'}) is None)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert dict(line.split() for line in result.stdout.splitlines()) == {
        "HF_HOME": "False",
        "HF_ENDPOINT": "False",
        "HF_HUB_OFFLINE": "True",
        "HF_UNKNOWN": "True",
        "SSH_CLIENT": "True",
    }
