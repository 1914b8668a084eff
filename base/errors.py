"""Errors of the server package, named for what the caller can do about them."""


class ServerError(Exception):
    """Root of the server's errors."""


class ConfigError(ValueError):
    """A setting has a value that is not allowed. `option` is the flag or variable that sets it."""

    def __init__(self, option: str, value: object, expected: str) -> None:
        super().__init__(f"{option} must be {expected}, got {value!r}")
        self.option = option
        self.value = value


class RequestError(ServerError):
    """The request cannot be served as it stands. Becomes an OpenAI error body.

    Args:
        message: what was wrong, with the value and what to do.
        param: the request field at fault, as a client would write it.
        status: HTTP status: 4xx, 503 if the server is overloaded or 504 after a timeout.
        type: vLLM's error type, e.g. `BadRequestError`, `NotFoundError`.
    """

    def __init__(
        self, message: str, *, param: str | None = None, status: int = 400, type: str = "BadRequestError"
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.type = type


class UnsupportedApiError(RequestError):
    """The endpoint does not fit the model. Becomes the 404 of a route that does not exist, as in vLLM."""

    def __init__(self, api_name: str, hint: str = "") -> None:
        super().__init__(f"The model does not support {api_name} API{hint}", status=404, type="NotFoundError")


class CodedRequestError(RequestError):
    """A rejection that the client's library handles: it looks for `error_code` in the error's `details`."""

    def __init__(self, message: str, *, param: str, error_code: str) -> None:
        super().__init__(message, param=param)
        self.error_code = error_code


class OverloadedError(RequestError):
    """The server has no room for the request at the moment. Becomes a 503 with Retry-After.

    Args:
        message: which limit is reached, its value and its flag.
        reason: the limit's name, for the metrics.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message, status=503, type="ServiceUnavailableError")
        self.reason = reason


class EngineError(ServerError):
    """The engine could not process a request. Becomes a 5xx."""


class EngineStartError(EngineError):
    """The engine process did not become ready: a bad model, no memory, a crash.

    Start-up fails with exit code 3.
    """


class EngineMemoryError(EngineStartError):
    """The model or its cache does not fit on the device. A retry would fail too."""


class EngineDeadError(EngineError):
    """The engine process has exited. It cannot generate any more."""


class PromptTooLongError(RequestError):
    """The prompt does not fit the context. Clients parse the message, which is therefore vLLM's."""

    def __init__(self, num_tokens: int, most: int) -> None:
        """`num_tokens` is more than `most`, or equal to it, which leaves no room for the answer."""
        if num_tokens > most:
            text = (
                f"This model's maximum context length is {most} tokens. However, your prompt contains at least "
                f"{num_tokens} input tokens, which exceeds this limit even without any output tokens. "
                f"Please reduce the length of the input prompt. (parameter=input_tokens, value={num_tokens})"
            )
        else:
            text = (
                f"The decoder prompt (length {num_tokens}) plus the number of requested output tokens (at least 1) is "
                f"longer than the maximum model length of {most}. Make sure that `max_model_len` is no smaller than "
                "the number of text tokens (prompt + requested output tokens)."
            )
        super().__init__(text, param="input_tokens")
