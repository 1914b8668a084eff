"""`make test-vllm-versions`: the table of its results."""

from pathlib import Path

from tools.vllm_versions import Outcome, Run, describe, read_results, run_version

_RESULTS = """<testsuites><testsuite>
<testcase classname="tests.vllm_engine.test_one" name="test_a_thing[x]"/>
<testcase classname="tests.vllm_engine.test_one" name="test_a_thing[y]"><failure message="no"/></testcase>
<testcase classname="tests.vllm_engine.test_one" name="test_other"><skipped message="no GPU"/></testcase>
</testsuite></testsuites>"""


def test_results_are_summed_by_test_function(tmp_path: Path) -> None:
    (tmp_path / "results.xml").write_text(_RESULTS)
    assert read_results(tmp_path / "results.xml") == {
        "test_one: a thing": Outcome(1, ["test_a_thing[y]"], []),
        "test_one: other": Outcome(0, [], ["no GPU"]),
    }
    assert read_results(tmp_path / "absent.xml") == {}


def test_the_table_shows_versions_and_reasons() -> None:
    tests = {"one: a": Outcome(2), "one: b": Outcome(1, ["test_b[x]"]), "one: c": Outcome(0, [], ["no GPU"])}
    runs = [Run("0.28.0", "vllm-0.28.0", {"spans": ("changed",)}, tests), Run("0.99.0", None)]
    assert list(describe(runs)) == [
        "                       0.28.0         0.99.0",
        "one: a                 passed 2       -",
        "one: b                 FAILED 1 of 2  -",
        "one: c                 skipped        -",
        "hooks that do not fit  1              -",
        "0.28.0: one: b: FAILED: test_b[x]",
        "0.28.0: one: c: skipped: no GPU",
        "0.28.0: the hook 'spans' does not fit: changed",
        "0.99.0: skipped; install it with ../shared/peers.sh .peers vllm@0.99.0",
    ]


def test_a_version_that_is_not_installed_is_skipped() -> None:
    assert run_version("0.1.0", ()) == Run("0.1.0", None)
