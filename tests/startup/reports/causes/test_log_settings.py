"""What a log says about its server decides the cause and the advice: each part of vLLM in turn.

`log_settings.txt` has logs with other settings, versions and platforms.
"""

import pytest

from startup.reports.causes.cause import Cause
from startup.reports.causes.digest import write_digest
from startup.reports.causes.first_cause import find_cause
from startup.reports.causes.table import PARTS
from tests.startup.reports.causes.written_logs import CORE, INFO
from tests.support.tiers import thorough_but_for


def _arguments(text: str) -> str:
    return f"{INFO}non-default args: {{'model_tag': 'a/b', 'model': 'a/b', 'max_model_len': 4096, {text}}}"


def _explain(setting: str, error: str, *files: str) -> tuple[Cause, str]:
    frames = [f'  File "{file}", line 7, in f' for file in files]
    failed = ("EngineCore failed to start.", "Traceback (most recent call last):", *frames, error)
    cause = find_cause([f"{INFO}vLLM API server version 0.11.0", setting, *(CORE + line for line in failed)])
    assert cause is not None
    return cause, write_digest(cause)[-2]


@pytest.mark.parametrize(
    ("file", "name"), [(file, name) for part in PARTS for file in part.files for name in part.settings]
)
def test_each_part_names_the_setting_that_turned_it_on(file, name):
    path = f"/x/vllm/x{file}x.py" if not file.endswith(".") else f"/x/vllm/x{file}py"
    setting = f"{name}X=1 vllm serve a/b" if name.isupper() else _arguments(f"'{name}': 'something'")
    flag = f"{name}X" if name.isupper() else f"--{name.replace('_', '-')}"
    _, advice = _explain(setting, "RuntimeError: odd", path)
    assert flag in advice and "set" in advice
    assert "it is set" not in _explain(_arguments("'seed': 1"), "RuntimeError: odd", path)[1]


_WITH_CAUSES = [(file, part.known.name) for part in PARTS if part.known for file in part.files if "/trans" not in file]


@pytest.mark.parametrize(
    "root",
    thorough_but_for(["/x/envs/vllm/lib/python3.12/site-packages/", "/usr/lib/dist-packages/", "/src/"], "/src/"),
)
@pytest.mark.parametrize(("file", "name"), _WITH_CAUSES)
def test_a_library_that_a_part_of_vllm_called_failed_for_that_part(root, file, name):
    own = f"vllm/{file.strip('/').removeprefix('vllm/')}/x.py"
    files = [root + path for path in ("vllm/v1/engine/core.py", own, "vllm/_custom_ops.py", "torch/_ops.py")]
    cause, _ = _explain("", "RuntimeError: m must be divisible by 4", *files)
    assert cause.known is not None and cause.known.name == name
