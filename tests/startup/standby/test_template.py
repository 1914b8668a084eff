"""What a template and a front process import, the variables of these imports, and the template's memory."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest

from startup.files.prefetch.messages import PrefetchReport
from startup.files.prefetch.prefetch_process import PrefetchHandle
from startup.settings.serve_arguments import LauncherLine
from startup.standby import standby, template
from startup.standby.import_state import ImportEnvironment, recorded_reads, written_since
from startup.standby.sockets import VLLM_EAGER, template_kind
from startup.standby.standby import _ModelPages
from tests.support.cli import run_python
from tests.support.llamas import save_tiny_llama


@pytest.mark.parametrize(
    ("expression", "read"),
    [
        *(
            (expression, {"NAME"})
            for expression in (
                "os.environ['NAME'] or 1",
                "os.environ.get('NAME')",
                "os.getenv('NAME')",
                "'NAME' in os.environ",
                "os.environ.setdefault('NAME', '1')",
                "os.environb.get(b'NAME')",
                "os.path.expandvars('$NAME')",
            )
        ),
        *(
            (expression, set())
            for expression in (
                "dict(os.environ)",
                "os.environ.copy()",
                "list(os.environ)",
                "{**os.environ}",
                "list(os.environ.items())",
                "1 / 0",
            )
        ),
    ],
)
def test_a_read_by_name_is_recorded_but_no_listing(expression, read, monkeypatch):
    monkeypatch.setenv("NAME", "value")
    with suppress(ZeroDivisionError), recorded_reads() as names:
        eval(expression)
    assert names == read
    assert type(os.environ) is type(os.environb) is os._Environ


_LOADED = (
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "PYTHONHASHSEED",
    "PYTHONPATH",
    "MALLOC_ARENA_MAX",
    "GLIBC_TUNABLES",
    "OMP_NUM_THREADS",
    "KMP_AFFINITY",
    "GOMP_CPU_AFFINITY",
    "LRU_CACHE_CAPACITY",
    "PYTORCH_ALLOC_CONF",
)
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
    given, start = (dict(argument.split("=", 1) for argument in arguments.split()) for arguments in (given, start))
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


@pytest.mark.parametrize("argument", ["--preflight-only", "--preflight_only", "--help", "--version"])
def test_commands_that_do_not_start_vllm_need_no_template(argument):
    assert template_kind(LauncherLine(["--engine", "vllm", "--enforce-eager", argument])) is None
    assert template_kind(LauncherLine(["--engine", "vllm", "--enforce-eager"])) == VLLM_EAGER


_ROOT = Path(__file__).parents[3]
_LIST = """
import sys
sys.path.insert(0, sys.argv[1])
from vllm_cli import own_packages
from base.machine import command_line
from startup.standby import forwarding, front_process
print(*sorted(sys.modules))
"""


def test_a_warm_start_imports_neither_click_nor_typing():
    listed = subprocess.run([sys.executable, "-I", "-S", "-c", _LIST, _ROOT], stdout=subprocess.PIPE, check=True)
    loaded = set(listed.stdout.decode().split())
    assert loaded > {"startup.settings.serve_arguments", "startup.processes.messages", "startup.standby.sockets"}
    assert loaded & {"click", "typing", "dataclasses", "logging", "pathlib", "re", "subprocess"} == set()


SCRIPT = """
import os, sys
from startup.standby.template import collapse_memory

blocks = [bytes([n % 251]) * 500_000 for n in range(100)]
num_pages = collapse_memory()
pid = os.fork()
if pid == 0:
    blocks[0] = b"x" * 500_000
    os._exit(not all(block == bytes([n % 251]) * 500_000 for n, block in enumerate(blocks) if n))
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert all(block == bytes([n % 251]) * 500_000 for n, block in enumerate(blocks))
huge = next(line for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages"))
flags = {flag for line in open("/proc/self/smaps") if line.startswith("VmFlags") for flag in line.split()[1:]}
print(status, num_pages, int(huge.split()[1]) // 2048, "hg" in flags)
"""


@pytest.mark.thorough
def test_memory_moves_and_keeps_its_content_here_and_in_forks():
    status, num_pages, num_huge, is_marked = run_python(SCRIPT, check=True).stdout.split()
    assert status == "0"
    assert int(num_huge) >= int(num_pages) // 2  # the fork may have split some
    assert is_marked == "False"  # later memory of these ranges is as in an executed process
    if int(num_pages) == 0:
        pytest.skip("this kernel has no MADV_COLLAPSE, or huge pages are switched off")


@pytest.mark.parametrize("setting", ["always madvise [never]\n", None])
def test_the_administrators_setting_is_obeyed(tmp_path, setting, monkeypatch):
    path = tmp_path / "enabled"
    if setting is not None:
        path.write_text(setting)
    monkeypatch.setattr(template, "_HUGE_PAGES", path)
    assert template.collapse_memory() == 0


@pytest.mark.parametrize(("unknown_bytes", "num_prefetches"), [(0, 3), (1000, 1)])
def test_weights_are_read_again_if_it_is_known_what_is_missing(unknown_bytes, num_prefetches, tmp_path, monkeypatch):
    start = Mock(return_value=PrefetchHandle(None, PrefetchReport("done", unknown_bytes=unknown_bytes)))
    monkeypatch.setattr(standby, "start_prefetch", start)
    monkeypatch.setattr(standby, "_PAGES_CHECK_S", 0.0)
    with _ModelPages((str(save_tiny_llama(tmp_path)),)) as pages:
        for _ in range(3):
            pages.keep()
    assert [call.args[0][-1].name for call in start.call_args_list] == ["model.safetensors"] * num_prefetches
