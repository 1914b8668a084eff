"""What commands show while they wait, without a terminal."""

import time

from vllm_cli.terminal import Reporter


def test_a_change_of_state_is_a_line(capsys):
    reporter = Reporter()
    for text, state in (("1 s importing", "importing"), ("2 s importing", "importing"), ("3 s loading", "loading")):
        reporter.update(text, state)
    assert capsys.readouterr().err == "1 s importing\n3 s loading\n"


def test_progress_is_a_line_after_the_interval(capsys):
    reporter = Reporter(interval_s=0.05)
    reporter.update("10 %")
    time.sleep(0.06)
    for text in ("20 %", "30 %"):
        reporter.update(text)
    assert capsys.readouterr().err == "20 %\n"


def test_a_quiet_command_shows_nothing(capsys):
    reporter = Reporter(is_quiet=True, interval_s=0)
    reporter.update("importing", "importing")
    reporter.note("ready")
    reporter.close()
    assert capsys.readouterr().err == ""
