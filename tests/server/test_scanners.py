"""For any text of a client or model, reading twice as much text costs about twice as much."""

import ast
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.server.scanners import SCANNERS
from tests.support.growth import growth

ROOT: Final = Path(__file__).parents[2]

MEASURED_ELSEWHERE: Final = {
    "server.text.parsers.own_template": "regular expressions and texts of the model's template",
    "server.text.renderers.renderer": "templates of the model",
}

OTHER_TEXT: Final = {
    "server.terms.config": "settings of the operator",
    "base.server_settings": "settings of the operator",
    "server.terms.server_config": "settings of the operator",
    "server.engine": "tokens, tensors and files of the model: the engine has no text but grammars and markers",
    "base.machine": "files of the kernel",
    "base.json_form": "settings of the operator",
    "base.wording": "messages of errors",
    "server.text.model_files": "files of the model",
    "server.text.renderers.images.processor": "look-ups by an image's digest; names in the model's files",
    "server.text.renderers.tokenizers.tokenizer": "pieces of the vocabulary",
    "server.text.renderers.tokenizers.loading": "files of the model",
    "server.text.renderers.images.vision": "one split at the model's image token",
    "server.http.routes.info": "files of the kernel",
    "server.http.app": "settings of the operator",
    "server.http.routes.openapi": "the declared paths",
    "server.apis.openai.chat": "look-ups",
    "server.operation.models": "look-ups by name",
    "server.generation.reasoning": "the last characters of a prompt, a fixed number",
    "server.apis.responses": "look-ups by name; one read_json of a call",
    "server.generation.generation": "files of the model",
    "server.http.transport.connection": "one partition of a path, one split of a header; their length is limited",
    "server.http.transport.input_turns": "each slice is searched once: tests/server/http/side_by_side",
}
"""Module or package -> what it reads instead, or why it reads the text only once."""

_METHODS: Final = frozenset(
    ("find", "rfind", "index", "rindex", "partition", "rpartition", "split", "rsplit", "splitlines", "loads", "parse")
)


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.alone
@pytest.mark.parametrize("smallest", [0, pytest.param(1 << 13, marks=pytest.mark.slow)])
def test_costs_are_linear(smallest):
    faults = [
        f"{scanner.name}, {text!r}: {fault}"
        for scanner in SCANNERS
        for text in scanner.texts
        if (fault := growth(lambda n, s=scanner, t=text: s.prepare(t, n), max(scanner.smallest, smallest)))  # type: ignore[misc]
    ]
    assert faults == []


@pytest.mark.thorough
def test_every_module_that_reads_text_is_in_the_list():
    reading = {module for module, source in _sources() if _reads_text(source)}
    missing = {module for module in reading - _listed() - MEASURED_ELSEWHERE.keys() if not _other_text(module)}
    assert missing == set(), "name a scanner for it in scanners.py, or what it reads in OTHER_TEXT"


def test_the_list_names_no_module_that_is_gone():
    modules = {module for module, _ in _sources()}
    assert _listed() - {"startup.port.probe_http"} <= modules
    assert all(any(m == name or m.startswith(name + ".") for m in modules) for name in OTHER_TEXT)


def _listed() -> set[str]:
    return {module for scanner in SCANNERS for module in scanner.modules.split()}


def _sources() -> Iterator[tuple[str, str]]:
    for file in sorted((*ROOT.glob("base/**/*.py"), *ROOT.glob("server/**/*.py"))):
        yield ".".join(file.relative_to(ROOT).with_suffix("").parts), file.read_text()


def _reads_text(source: str) -> bool:
    """Whether the module uses regular expressions, searches or splits, or parses JSON or Python."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(alias.name in ("re", "regex") for alias in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and node.module in ("re", "regex"):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS:
            return True
    return False


def _other_text(module: str) -> bool:
    return any(module == name or module.startswith(name + ".") for name in OTHER_TEXT)
