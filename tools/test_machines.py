"""`make test-machines` says where it is not possible, and fails unless that is allowed."""

import pytest

from tools import machines


@pytest.mark.parametrize(("arguments", "exit_code"), [([], 2), (["--if-possible"], 0)], ids=["needed", "if possible"])
def test_without_root_the_reason_is_reported(arguments, exit_code, monkeypatch, capsys):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("sys.argv", ["machines", "check", "trixie", *arguments])
    assert machines.main() == exit_code
    assert capsys.readouterr().err == "fresh machines: skipped, because they need root\n"
