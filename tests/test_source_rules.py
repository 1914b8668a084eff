"""Rules for all modules of the product that ruff does not have."""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from startup.logs.setup import PACKAGES

ROOT: Final = Path(__file__).parents[1]

POSSESSIVE: Final = re.compile(r"[*+?}]\+|\(\?>")
_SETS: Final = re.compile(r"\[\^?\]?[^\]]*\]")

OWN_JSON: Final = {
    "base/json_depth.py": "read_json itself",
    "base/json_form.py": "a text whose depth is checked in the line before",
    "server/apis/responses/tools.py": "nothing: prepares classes",
    "server/engine/model_loading.py": "the members of tokenizer.json that a tokenizer has read",
    "server/engine/sampling/grammar.py": "choices, which server/generation has encoded",
    "server/engine/sampling/grammar_trial.py": "messages between engine and helper process",
    "server/engine/sampling/json_schema.py": "schemas, which server/generation has read and encoded",
    "server/text/renderers/tokenizers/loading.py": "the members of tokenizer.json that a tokenizer has read",
    "server/text/renderers/tokenizers/tokenizer.py": "the state of a decoder",
    "startup/storage/caches.py": "files that only this user can write",
    "startup/imports/learned_imports.py": "notes of this user's processes",
    "startup/compiled_models/exchange.py": "files of this start",
    "startup/files/prefetch/survey.py": "a cache of this user",
    "startup/session/start_state.py": "pipes between processes of this start",
    "router/http/body_members.py": "one text between quotes",
    "router/http/request_body.py": "the same",
    "router/models_file/schema.py": "a file of this program",
    "startup/storage/run_record.py": "a record of a running process of this user",
    "startup/standby/import_state.py": "pipes between processes of this start",
    "startup/standby/status.py": "the answer of this user's standby",
    "startup/kernels/kernel_lists.py": "a file of this program",
    "startup/vllm/fork/kernel_processes.py": "files of this start",
    "startup/vllm/fork/preload_plan.py": "a plan of this start",
    "startup/vllm/launch/first_record.py": "pipes between processes of this command",
    "startup/vllm/patches/graphs/graph_proof.py": "a file of this program",
    "startup/vllm/journal.py": "files of this start",
    "startup/compiled_models/vllm_hooks.py": "what was encoded in the line before, and settings that vLLM has read",
    "vllm_cli/bench/probe.py": "pipes between processes of this command",
    "vllm_cli/bench/standby.py": "the output of this program",
    "vllm_cli/supervisor.py": "pipes between processes of this command",
}
"""Files that read JSON without a check of its depth -> the writer of this JSON."""


def _sources(pattern: str, packages: Iterable[str] = PACKAGES) -> Iterator[tuple[str, ast.Module]]:
    """Yields the files whose text matches. Parsing all files would take seconds."""
    for package in packages:
        for file in sorted((ROOT / package).rglob("*.py")):
            if re.search(pattern, text := file.read_text()):
                yield str(file.relative_to(ROOT)), ast.parse(text)


def _calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Yields the calls of functions of modules, such as `re.compile`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def _texts(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str | bytes):
            yield part.value if isinstance(part.value, str) else part.value.decode("latin-1")


def _is_possessive(call: ast.Call) -> bool:
    """Whether a text in the call has a possessive or atomic group. Ignores escaped characters and sets."""
    return any(POSSESSIVE.search(_SETS.sub("a", re.sub(r"\\.", "a", text))) for text in _texts(call))


def test_no_expression_of_re_is_possessive_or_atomic():
    """Before Python 3.11.5, `re` matches such groups wrongly. Use the library `regex` for them."""
    assert [
        f"{name}:{call.lineno}"
        for name, tree in _sources(POSSESSIVE.pattern)
        for function, call in _calls(tree)
        if function.startswith("re.") and _is_possessive(call)
    ] == []


def test_such_an_expression_is_found():
    for pattern in (r'(?:a|b)*+"', "a++", "a?+", "a{2}+", "(?>a|b)", r"[+]\\*+"):
        assert _is_possessive(ast.parse(f"re.compile({pattern!r})").body[0].value), pattern  # type: ignore[attr-defined]
    for pattern in ("[*+]+", r"\*+", "a+?", r"C\+\+", "[]+*+]"):
        assert not _is_possessive(ast.parse(f"re.compile({pattern!r})").body[0].value), pattern  # type: ignore[attr-defined]


def test_json_that_others_have_written_is_read_only_after_a_check_of_its_depth():
    unchecked = set()
    for name, tree in _sources(r"json\.(load|JSONDecoder|decode|Decoder)"):
        functions = {function for function, _ in _calls(tree)}
        parsers = {"json.loads", "json.load", "json.JSONDecoder", "msgspec.json.decode", "msgspec.json.Decoder"}
        reads_unchecked = functions & {"json.loads", "json.load"} or "check_depth" not in functions
        if functions & parsers and reads_unchecked:
            unchecked.add(name)
    assert unchecked == OWN_JSON.keys(), "read_json or check_depth of base/json_depth.py, or a reason in OWN_JSON"


def test_values_of_property_tests_are_the_same_in_every_run():
    """`hypothesis` itself would choose other values. `stateful` and `strategies` have no settings."""
    own = [
        str(file.relative_to(ROOT))
        for file in (ROOT / "tests").rglob("*.py")
        if re.search(r"^(import hypothesis|from hypothesis import)", file.read_text(), re.MULTILINE)
    ]
    assert own == ["tests/support/properties.py"], "import `given` and `settings` from there"


_CLOCKS: Final = r"\b(monotonic|perf_counter|thread_time|process_time|time)(_ns)?\(\)|\.cpu_times\(\)"
_LEAST_LIMIT_S: Final = 30


def test_no_test_has_a_short_limit_of_a_measured_time():
    """On a busy machine, everything takes longer."""
    short = []
    for name, tree in _sources(_CLOCKS, ["tests"]):
        short += [f"{name}:{line}" for line in _short_limits(tree)]
    assert short == [], "count steps, or wait for an event"


def test_a_short_limit_is_found():
    texts = (
        "assert time.monotonic() - begin_s < 5",
        "_S = 2.0\nassert 2 * _S > perf_counter() - begin",
        "took_s = time.thread_time() - begin_s\nassert took_s < 0.005",
        "costs.append(thread_time_ns() - begin)\nassert 0 < min(costs) <= 5_000_000",
        "longest = max(longest, time.process_time() - begin)\nassert longest < 1",
    )
    assert [len([*_short_limits(ast.parse(text))]) for text in texts] == [1] * len(texts)
    fine = ("assert time.monotonic() - begin_s < 60", "assert time.monotonic() - begin_s >= 1", "assert len(x) < 5")
    assert [[*_short_limits(ast.parse(text))] for text in fine] == [[], [], []]


def _short_limits(tree: ast.Module) -> Iterator[int]:
    """Yields the lines of asserts that compare a measured time with a shorter limit than 30 s."""
    constants = {
        ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target): node.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
    }
    measured = {name: text for node in ast.walk(tree) for name, text in _measured_names(node)}
    for node in ast.walk(tree):
        for compared in ast.walk(node.test) if isinstance(node, ast.Assert) else ():
            if isinstance(compared, ast.Compare) and _has_short_limit(compared, measured, constants):
                yield node.lineno  # type: ignore[attr-defined]


def _measured_names(node: Any) -> Iterator[tuple[str, str]]:
    """Yields names that get a difference of times in this statement, with the statement."""
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append"
    if not isinstance(node, ast.Assign) and not is_call:
        return
    given = node.value if isinstance(node, ast.Assign) else node
    if any(isinstance(each, ast.BinOp) and _reads_clock(each) for each in ast.walk(given)):
        yield ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.func.value), ast.unparse(node)


def _reads_clock(node: Any) -> bool:
    return isinstance(node.op, ast.Sub) and re.search(_CLOCKS, ast.unparse(node.left)) is not None


def _has_short_limit(node: ast.Compare, measured: dict[str, str], constants: dict[str, ast.expr]) -> bool:
    sides = [node.left, *node.comparators]
    for before, operator, after in zip(sides, node.ops, sides[1:], strict=False):
        is_less = isinstance(operator, ast.Lt | ast.LtE)
        if not is_less and not isinstance(operator, ast.Gt | ast.GtE):
            continue
        time_side, limit = (before, after) if is_less else (after, before)
        parts = list(ast.walk(time_side))
        sources = [measured[name] for name in map(ast.unparse, parts) if name in measured]
        sources += [ast.unparse(part) for part in parts if isinstance(part, ast.BinOp) and _reads_clock(part)]
        value = _value_of(limit, constants)
        if sources and value is not None and value < _LEAST_LIMIT_S * (1e9 if "_ns()" in sources[0] else 1):
            return True
    return False


def _value_of(node: ast.expr, constants: dict[str, ast.expr]) -> float | None:
    """The number that the expression stands for. None if it does not depend on constants alone."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.Name) and node.id in constants:
        return _value_of(constants[node.id], constants)
    if isinstance(node, ast.BinOp):
        sides = [_value_of(side, constants) for side in (node.left, node.right)]
        if None not in sides and isinstance(node.op, ast.Add | ast.Mult):
            return sides[0] + sides[1] if isinstance(node.op, ast.Add) else sides[0] * sides[1]
    return None
