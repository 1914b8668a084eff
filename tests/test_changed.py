"""`make test CHANGED=1` selects the tests that a change can reach."""

import subprocess
from pathlib import Path

import pytest

from tests.changed import READ_ALL_FILES, ROOT, Uses, find_changes, read_uses, select_tests


@pytest.fixture(scope="module")
def uses() -> Uses:
    return read_uses(ROOT)


@pytest.mark.parametrize(
    ("changed", "reached", "not_reached"),
    [
        ("tests/growth.py", "tests/test_growth.py", "tests/test_audit.py"),
        ("tests/test_audit.py", "tests/test_audit.py", "tests/test_growth.py"),
        ("server/access_log.py", "tests/server/test_access_log.py", "tests/test_growth.py"),
        ("server/parsers/tools/deepseek.py", "tests/server/parsers/test_cuts.py", "tests/test_growth.py"),
        ("vllm_cli/commands/wait.py", "tests/vllm_cli/test_main.py", "tests/server/test_access_log.py"),
        ("tests/hub/server.py", "tests/startup/download/test_obtain.py", "tests/test_growth.py"),
    ],
    ids=["helper", "test", "module", "module of a table", "module of a command", "helper of a fixture"],
)
def test_what_uses_the_changed_file_is_selected(changed: str, reached: str, not_reached: str, uses: Uses) -> None:
    selected = select_tests([changed], uses)
    assert reached in selected
    assert not_reached not in selected
    assert [path for path in selected if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("path", ["Makefile", "conftest.py", "tests/e2e/conftest.py", "server/status_page/page.html"])
def test_a_file_that_is_no_module_selects_all_tests(path: str, uses: Uses) -> None:
    assert select_tests(["tests/growth.py", path], uses) == ["tests"]


def test_a_page_selects_only_tests_that_read_files(uses: Uses) -> None:
    assert select_tests(["README.md", "docs/api.md"], uses) == sorted(READ_ALL_FILES)


def test_changes_are_those_of_the_branch_and_of_the_working_tree(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    def commit(*names: str) -> None:
        for name in names:
            (tmp_path / name).write_text(name)
        git("add", "-A")
        git("commit", "-m", "x")

    git("init", "-b", "main")
    commit("old.py", "edited.py", "removed.py", "data.json")
    git("checkout", "-b", "branch")
    commit("committed.py")
    git("checkout", "main")
    commit("elsewhere.py")
    git("checkout", "branch")
    (tmp_path / "edited.py").write_text("")
    (tmp_path / "new.py").touch()
    (tmp_path / "removed.py").unlink()
    (tmp_path / "data.json").unlink()
    assert find_changes(tmp_path) == {"committed.py", "edited.py", "new.py", "data.json"}
