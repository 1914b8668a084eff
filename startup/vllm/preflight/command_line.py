"""Checks the flags of `vllm serve`: unknown ones, values, and rules between flags that vLLM has itself."""

from collections.abc import Callable, Iterator
from typing import Any, Final

from base.wording import list_some
from envs.suggestion import did_you_mean
from startup.preflight.report import USAGE, Finding, error, warning
from startup.vllm.preflight.arguments import CheckedStart, GivenFlag, describe_unknown
from startup.vllm.preflight.flag_values import FlagValueError, is_range_certain, parse_value, range_problem

_MAX_NAMES: Final = 8


def command_line_findings(start: CheckedStart) -> Iterator[Finding]:
    """Every fault of the words."""
    arguments = start.arguments
    for problem in arguments.problems:
        yield error(USAGE, problem)
    report = error if start.facts.has_all_flags and not start.facts.plugins else warning
    for problem in describe_unknown(arguments.unknown, start.facts):
        yield report(USAGE, problem)
    for given in arguments.given:
        yield from _value_findings(start, given)
    if arguments.is_read and not arguments.unknown:
        for check in _RULES:
            yield from check(start)


def check_name(
    start: CheckedStart, flag: str, names: tuple[str, ...], *, plugin: str = "", fold: Callable[[str], str] = str
) -> Iterator[Finding]:
    """Whether the value of a flag is one of the names.

    Args:
        start: the start.
        flag: the flag.
        names: those that vLLM registers; without any, nothing is checked.
        plugin: a flag for a plugin, which may know more.
        fold: how vLLM writes the value before it compares it.
    """
    given: Any = start.value(flag)
    if not given or not names or fold(given) in names or (plugin and start.value(plugin)):
        return
    guess = did_you_mean(given, names) or f": choose one of {list_some(names, _MAX_NAMES)}"
    advice = f", or load a plugin with {plugin}" if plugin else ""
    yield error(flag.removeprefix("--").replace("-", "_"), f"this vLLM has no {flag} {given!r}{guess}{advice}")


def _value_findings(start: CheckedStart, given: GivenFlag) -> Iterator[Finding]:
    for text in given.values:
        try:
            value = parse_value(given.fact, text)
        except FlagValueError as err:
            # What a plugin adds to the choices of a flag is not known.
            is_certain = given.fact.choices is None or not start.facts.plugins
            yield (error if is_certain else warning)(USAGE, str(err))
            continue
        if problem := range_problem(given.fact, value):
            yield (error if is_range_certain(given.fact) else warning)("range", problem)


def _check_needed(start: CheckedStart) -> Iterator[Finding]:
    """Switches that need another flag."""
    has_rule, has = start.facts.has_rule, start.has
    has_parser = bool(start.value("--tool-call-parser"))
    if has_rule("tool choice needs parser") and has("--enable-auto-tool-choice") and not has_parser:
        yield error("tool_parser", "--enable-auto-tool-choice needs --tool-call-parser")
    logs_requests = has("--enable-log-requests")
    if has_rule("logged outputs need requests") and has("--enable-log-outputs") and not logs_requests:
        yield error("logging", "--enable-log-outputs needs --enable-log-requests")
    has_no_statistics = has("--disable-log-stats")
    if has_rule("per-request metrics need statistics") and has("--enable-per-request-metrics") and has_no_statistics:
        yield error("logging", "--enable-per-request-metrics needs statistics: remove --disable-log-stats")


def _check_exclusive(start: CheckedStart) -> Iterator[Finding]:
    """Flags that exclude each other."""
    has_rule = start.facts.has_rule
    if has_rule("grpc ports exclude each other") and start.has("--grpc") and start.value("--grpc-port") is not None:
        yield error("grpc", "--grpc and --grpc-port exclude each other: remove one")
    if (
        has_rule("headless has no API servers")
        and start.has("--headless")
        and start.number("--api-server-count", 0) > 0
    ):
        count = start.value("--api-server-count")
        yield error("headless", f"--headless starts no API server: remove --api-server-count {count}")
    if has_rule("one load balancing"):
        yield from _check_load_balancing(start)
    if has_rule("speculative flags exclude keys"):
        yield from _check_speculative(start)


def _check_load_balancing(start: CheckedStart) -> Iterator[Finding]:
    external = start.has("--data-parallel-external-lb", "--data-parallel-rank")
    hybrid, multi = start.has("--data-parallel-hybrid-lb"), start.has("--data-parallel-multi-port-external-lb")
    if not hybrid and not multi:
        hybrid = start.has("--data-parallel-start-rank")
    if external + hybrid + multi > 1:
        yield error(
            "load_balancing",
            "only one mode of load balancing is possible: choose one of --data-parallel-external-lb (or "
            "--data-parallel-rank), --data-parallel-hybrid-lb (or --data-parallel-start-rank) and "
            "--data-parallel-multi-port-external-lb",
        )


def _check_speculative(start: CheckedStart) -> Iterator[Finding]:
    config = start.value("--speculative-config")
    keys = {"--spec-method": "method", "--spec-model": "model", "--spec-tokens": "num_speculative_tokens"}
    for flag, key in keys.items():
        if isinstance(config, dict) and start.value(flag) is not None and key in config:
            yield error("speculative", f"{flag} and {key!r} of --speculative-config exclude each other: remove one")


def _check_numbers(start: CheckedStart) -> Iterator[Finding]:
    """Numbers that limit each other, where both are given."""
    has_rule = start.facts.has_rule
    batch, sequences = start.value("--max-num-batched-tokens"), start.value("--max-num-seqs")
    if has_rule("batch holds sequences") and batch and sequences and batch < sequences:
        yield error("batch", f"--max-num-batched-tokens {batch} must be at least --max-num-seqs {sequences}")
    length = start.value("--max-model-len")
    is_whole = has_rule("batch holds model length") and _is_off(start, "--enable-chunked-prefill")
    if is_whole and batch and length and batch < length:
        yield error(
            "batch",
            f"--max-num-batched-tokens {batch} must be at least --max-model-len {length} with "
            "--no-enable-chunked-prefill",
        )
    loras, cpu_loras = start.number("--max-loras", 1), start.value("--max-cpu-loras")
    if has_rule("cpu adapters") and start.has("--enable-lora") and cpu_loras is not None and cpu_loras < loras:
        yield error("lora", f"--max-cpu-loras {cpu_loras} must be at least --max-loras {loras}")
    interval = start.value("--sse-keep-alive-interval")
    if has_rule("keep-alive is not negative") and interval is not None and interval < 0:
        yield error("range", f"--sse-keep-alive-interval must be 0 or more, got {interval}")


def _check_nodes(start: CheckedStart) -> Iterator[Finding]:
    nodes, rank = start.number("--nnodes", 1), start.number("--node-rank", 0)
    if nodes > 1 and not 0 <= rank < nodes:
        yield error("nodes", f"--node-rank must be between 0 and {nodes - 1} with --nnodes {nodes}, got {rank}")


def _check_names(start: CheckedStart) -> Iterator[Finding]:
    """Names of parsers, formats and methods, unless a plugin may know more."""
    if start.facts.plugins:
        return
    names = start.facts.registries
    if start.has("--enable-auto-tool-choice") and start.facts.has_rule("tool parser is known"):
        yield from check_name(start, "--tool-call-parser", names.tool_parsers, plugin="--tool-parser-plugin")
    if start.facts.has_rule("reasoning parser is known"):
        yield from check_name(start, "--reasoning-parser", names.reasoning_parsers, plugin="--reasoning-parser-plugin")
    yield from check_name(start, "--load-format", names.load_formats, fold=str.lower)
    if names.attention_backends:
        yield from check_name(start, "--attention-backend", ("AUTO", *names.attention_backends), fold=str.upper)
    if names.config_formats:
        yield from check_name(start, "--config-format", ("auto", *names.config_formats))
    if names.tokenizer_modes:  # vLLM may handle further modes apart from the registry
        for finding in check_name(start, "--tokenizer-mode", ("auto", *names.tokenizer_modes), fold=str.lower):
            yield finding._replace(severity="warning")


def _check_config_word(start: CheckedStart) -> Iterator[Finding]:
    """vLLM reads the file of `--config FILE`, but not of `--config=FILE`."""
    if (name := start.arguments.value("--config")) is not None:
        yield warning("config_file", f"vLLM does not read --config={name}: write `--config {name}`, as two words")


def _is_off(start: CheckedStart, switch: str) -> bool:
    found = start.arguments.last(switch)
    return found is not None and not found.is_on


_RULES: Final[tuple[Callable[[CheckedStart], Iterator[Finding]], ...]] = (
    _check_needed,
    _check_exclusive,
    _check_numbers,
    _check_nodes,
    _check_names,
    _check_config_word,
)
