"""If installed files change while a standby runs, the next start is cold. Later starts run the new code."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import run_cli
from tests.support.ports import free_port
from tests.support.standby_process import StandbyProcess
from tests.support.waiting import wait_until


def _start(standby: StandbyProcess, model: Path, environment: dict[str, str], mode: str = "require") -> tuple[int, str]:
    environment = {**standby.environment, **environment, "VCLI_STANDBY": mode}
    words = ("serve", model, "--preflight-only", "--port", free_port())
    done = run_cli(*words, environment=environment, cwd=standby.runtime_folder)
    return done.returncode, done.stderr


def _install(folder: Path, version: str) -> None:
    """Installs a distribution of one module, which records which process has imported which version."""
    for old in folder.glob("tiny_thing-*.dist-info"):
        shutil.rmtree(old)
    module = f"import os\nopen({str(folder)!r} + '/imported', 'a').write(f'{{os.getpid()}} {version}\\n')\n"
    (folder / "tiny_thing.py.new").write_text(module)
    (folder / "tiny_thing.py.new").rename(folder / "tiny_thing.py")
    info = folder / f"tiny_thing-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tiny-thing\nVersion: {version}\n")


def test_an_upgraded_package_is_imported_again(tiny_llama, tmp_path):
    _install(tmp_path, "1.0")
    (tmp_path / "sitecustomize.py").write_text("import tiny_thing\n")
    environment = {"PYTHONPATH": str(tmp_path)}
    with StandbyProcess(environment=environment) as standby:
        template = standby.template()
        assert _start(standby, tiny_llama, environment)[0] == 0
        _install(tmp_path, "2.0")
        code, error = _start(standby, tiny_llama, environment)
        assert code == 3
        assert "out of date" in error
        assert "tiny_thing" in error
        wait_until(lambda: standby.status()["templates"][0]["pid"] not in (None, template.pid))
        standby.wait_ready()
        new_pid = standby.template().pid
        assert _start(standby, tiny_llama, environment)[0] == 0
        assert f"{new_pid} 2.0" in (tmp_path / "imported").read_text().splitlines()
        _install(tmp_path, "3.0")

        def is_found_out_of_date() -> bool:
            """A start asks nothing of a template that, on a busy machine, does not answer in 40 ms."""
            assert _start(standby, tiny_llama, environment, "auto") == (0, ""), "a cold start"
            return standby.status()["templates"][0]["pid"] not in (None, new_pid)

        wait_until(is_found_out_of_date)


@pytest.mark.parametrize(
    "is_detached", [pytest.param(False, marks=pytest.mark.slow), True], ids=["foreground", "detached"]
)
def test_a_standby_started_in_a_source_tree_runs_the_installed_program(is_detached, tiny_llama, tmp_path):
    """The standby's template processes start with `python -m`, which prefers the source tree."""
    (tmp_path / "vllm_cli").mkdir()
    (tmp_path / "vllm_cli" / "__init__.py").write_text("raise RuntimeError('the tree was imported')")
    (tmp_path / "model").symlink_to(tiny_llama)
    script = Path(sys.executable).with_name("vllm-cli")
    if not script.exists():
        pytest.skip("the console script is not installed")
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "VCLI_STANDBY": "require"}
    words = [str(script), "standby", "--for", "embedded", "--model", "model"]
    start = [str(script), "serve", str(tiny_llama), "--preflight-only", "--port", str(free_port())]

    def is_warm() -> bool:
        return subprocess.run(start, env=environment, capture_output=True, timeout=120, cwd="/").returncode == 0

    with subprocess.Popen([*words, *(["--detach"] if is_detached else [])], env=environment, cwd=tmp_path) as process:
        try:
            wait_until(is_warm)
        finally:
            subprocess.run([str(script), "standby", "stop"], env=environment, capture_output=True, timeout=60)
            assert process.wait(60) == 0
