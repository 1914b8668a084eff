"""Every error that ends a start has a code, which `explain` shows."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

from startup.errors import UNKNOWN_CAUSE, USAGE_CAUSE, StartupError, code_of, with_code
from startup.files.download.messages import DownloadError, FailureKind
from startup.reports.causes.table import BY_CODE, KNOWN, OWN
from startup.session.preflight.report import USAGE, PreflightReport, error, warning

ROOT = Path(__file__).parents[4]
NAMES = {known.name for known in BY_CODE.values()}
SOURCES = [path for package in ("startup", "router", "vllm_cli") for path in sorted((ROOT / package).rglob("*.py"))]


def _subclasses(kind: type[StartupError]) -> Iterator[type[StartupError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _subclasses(each)


def test_names_and_codes_are_unique():
    names = [known.name for known in (*KNOWN, *OWN)]
    assert len({*names}) == len(names) == len(BY_CODE)
    assert [code for code in BY_CODE if not re.fullmatch(r"VC(-[A-Z0-9]+)+", code)] == []


@pytest.mark.parametrize("module", ["router.model_entry", "startup.files.download.messages"])
def test_each_kind_of_error_has_a_known_cause(module):
    import_module(module)
    kinds = {*_subclasses(StartupError)}
    assert len(kinds) >= 6
    assert [kind for kind in kinds if kind.cause not in NAMES] == []


@pytest.mark.parametrize("kind", get_args(FailureKind))
def test_each_failure_of_a_download_has_a_known_cause(kind):
    assert DownloadError(kind, "x").cause in NAMES - {UNKNOWN_CAUSE}


def test_each_cause_that_the_code_names_is_known():
    """Causes are in arguments `cause=…` of errors, in the tables `_CAUSES` and in constants `_CAUSE`."""
    texts = {path: text for path in SOURCES if "cause=" in (text := path.read_text()) or "_CAUSE" in text}
    named = [(path.name, name) for path, text in texts.items() for name in _named_causes(ast.parse(text))]
    assert len(named) >= 25
    assert [each for each in named if each[1] not in NAMES] == []


def _named_causes(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        found: list[ast.expr] = []
        if isinstance(node, ast.Call):
            found = [word.value for word in node.keywords if word.arg == "cause"]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            is_table = node.target.id == "_CAUSES" and isinstance(node.value, ast.Dict)
            found = [*node.value.values] if is_table and isinstance(node.value, ast.Dict) else []
            found += [node.value] if node.target.id == "_CAUSE" and node.value else []
        yield from (each.value for each in found if isinstance(each, ast.Constant) and isinstance(each.value, str))


def test_each_own_cause_is_used():
    """A code that no error has should be removed."""
    texts = "".join(path.read_text() for path in SOURCES if path.name != "own.py")
    assert [known.name for known in OWN if f'"{known.name}"' not in texts] == []


def test_the_preflights_errors_have_codes_and_the_first_one_counts():
    report = PreflightReport((warning("shm", "w"), error("port", "p", "port-in-use"), error("config", "c")), 0.0)
    err = report.as_error()
    assert err is not None and err.cause == "port-in-use"
    assert [finding.to_fields().get("code") for finding in report.findings] == [None, "VC-PORT-IN-USE", "VC-PREFLIGHT"]
    refused = PreflightReport((error("port", "p", "port-in-use"), error(USAGE, "u")), 0.0).as_error()
    assert refused is not None and refused.cause == USAGE_CAUSE


def test_each_code_in_the_documentation_exists():
    pages = (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
    named = {code for page in pages for code in re.findall(r"VC(?:-[A-Z0-9]+)+", page.read_text())}
    assert named
    assert named - BY_CODE.keys() == set()


def test_the_code_is_the_last_line():
    assert with_code("a\nb", "x-y") == "a\nb\nCode: VC-X-Y"
    assert code_of(UNKNOWN_CAUSE) in BY_CODE
