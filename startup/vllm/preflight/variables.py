"""Checks the environment variables that vLLM reads, and those of the hub's client and of proxies."""

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from envs import foreign
from envs.redaction import is_secret_name
from envs.suggestion import did_you_mean
from startup.preflight.report import Finding, error, warning
from startup.vllm.facts.vllm_facts import VariableFact, VllmFacts

_PREFIX: Final = "VLLM_"
_SERVICE: Final = ("_SERVICE_HOST", "_SERVICE_PORT", "_PORT_", "_SERVICE_PORT_")
"""Parts of names that Kubernetes sets for a service called vllm, or vllm-something."""
_PROXIES: Final = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")


def variable_findings(facts: VllmFacts) -> Iterator[Finding]:
    """Values that vLLM cannot parse, and names that it does not know."""
    if not facts.variables:
        return
    variables = foreign.snapshot()
    for fact in facts.variables:
        if fact.name in variables and (problem := value_problem(fact, variables[fact.name])):
            report = error if facts.has_rule("variables are all parsed") else warning
            yield report("environment", problem)
    known = {fact.name for fact in facts.variables}
    for name in sorted(variables):
        if name.startswith(_PREFIX) and name not in known and not _is_of_service(name):
            yield warning("environment", f"vLLM does not read {name}{did_you_mean(name, known)}: unset it")
    for name in _PROXIES:
        if variables.get(name) and not urlsplit(variables[name]).hostname:
            yield warning("environment", f"{name} is no address such as http://proxy:3128")


def value_problem(fact: VariableFact, text: str) -> str | None:
    """Why vLLM cannot read the value; None if it can, or if that is not known."""
    shown = "" if is_secret_name(fact.name) else f", got {text!r}"
    if fact.kind in ("int", "float"):
        try:
            (int if fact.kind == "int" else float)(text)
        except ValueError:
            return (
                f"{fact.name} must be a {'whole ' if fact.kind == 'int' else ''}number{shown}{_cause(fact.name, text)}"
            )
    elif fact.kind == "choice" and (text.lower() if fact.is_case_free else text) not in fact.choices:
        return f"{fact.name} must be one of {', '.join(fact.choices)}{shown}: correct it or unset it"
    return None


def _cause(name: str, text: str) -> str:
    if "://" in text:
        service = name.removesuffix("_PORT").lower().replace("_", "-")
        return (
            f": Kubernetes sets it for a service called {service}; rename the service, or give the pod "
            "enableServiceLinks: false"
        )
    return ": correct it or unset it"


def _is_of_service(name: str) -> bool:
    """Whether Kubernetes has set it for a service whose name begins with `vllm`; vLLM ignores it."""
    return any(part in name for part in _SERVICE) or name.endswith("_PORT")
