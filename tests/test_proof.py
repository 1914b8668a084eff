"""Tests that check nothing are found, and their helpers are followed."""

from pathlib import Path

import pytest

from tests.proof import find_unproven


def _found(tmp_path: Path, **files: str) -> set[str]:
    for name, content in files.items():
        (tmp_path / "tests" / f"{name}.py").parent.mkdir(exist_ok=True)
        (tmp_path / "tests" / f"{name}.py").write_text(content)
    return find_unproven(tmp_path / "tests")


@pytest.mark.parametrize(
    "body",
    [
        "x()",
        "x() == 1",
        "from server.a import f; f()",
        "from server.a import Check; Check().check()",
        "from tests.helper import plain; plain()",
        "subprocess.run(['a'], check=False)",
        "\n  def fake(): raise OSError\n  x(fake)",
    ],
)
def test_a_test_without_a_check_is_found(tmp_path: Path, body: str) -> None:
    helper = "class Helper:\n    def check(self): assert 1\ndef plain(): f()\ndef f(): pass"
    assert _found(tmp_path, helper=helper, test_a=f"def test_b(): {body}") == {"test_a.py::test_b"}


@pytest.mark.parametrize(
    "body",
    [
        "assert x()",
        "pytest.raises(ValueError, f)",
        "subprocess.run(['a'], check=True)",
        "torch.testing.assert_close(1, 1)",
        "from tests.helper import outer; outer()",
        "from tests.helper import Helper; Helper()",
        "x.check()",
        "\n  def check(): raise OSError\n  check()",
    ],
)
def test_a_check_is_recognized(tmp_path: Path, body: str) -> None:
    helper = """
class Helper:
    def __init__(self): inner()
    def check(self): raise AssertionError
def outer(): inner()
def inner(): assert 1
"""
    assert _found(tmp_path, helper=helper, test_a=f"async def test_b(): {body}") == set()
