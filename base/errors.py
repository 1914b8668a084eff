"""Errors that several packages share. The caller reacts to each class in a different way."""

from collections.abc import Iterator


def with_causes(err: BaseException | None) -> Iterator[BaseException]:
    """Yields the error, then the error that caused it, and so on."""
    while err is not None:
        yield err
        err = err.__cause__ or err.__context__


class ServerError(Exception):
    """The base class of the server's errors."""


class ConfigError(ValueError):
    """A setting has a value that is not allowed. `option` is the flag or variable that sets it."""

    def __init__(self, option: str, value: object, expected: str) -> None:
        super().__init__(f"{option} must be {expected}, got {value!r}")
        self.option = option
        self.value = value
        self.others: tuple[ConfigError, ...] = ()
        """Further faults of the same configuration."""


class RequestError(ServerError):
    """A request cannot be served in its present form. Becomes the error body of an OpenAI response.

    Args:
        message: the problem, the value and a remedy.
        param: the field of the request that has the fault, in the client's spelling.
        status: the HTTP status, which is 4xx, 503 if the server is overloaded, or 504 after a timeout.
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
    """The model does not support the endpoint. As in vLLM, the answer is 404, as for an unknown endpoint."""

    def __init__(self, api_name: str, hint: str = "") -> None:
        super().__init__(f"The model does not support {api_name} API{hint}", status=404, type="NotFoundError")


class CodedRequestError(RequestError):
    """An error that client libraries handle. They read `error_code` in the error's `details`."""

    def __init__(self, message: str, *, param: str, error_code: str) -> None:
        super().__init__(message, param=param)
        self.error_code = error_code


class OverloadedError(RequestError):
    """The request would exceed a limit of the server at the moment. Becomes a 503 with Retry-After.

    Args:
        message: the limit that is reached, its value and its flag.
        reason: the limit's name, for the metrics.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message, status=503, type="ServiceUnavailableError")
        self.reason = reason


class EngineError(ServerError):
    """The engine could not process a request. Becomes a 5xx."""


class EngineStartError(EngineError):
    """The engine did not become ready: bad model, missing memory or a crash. The start exits with code 3."""


class EngineMemoryError(EngineStartError):
    """The model or its KV cache does not fit on the device. A retry would also fail."""


class EngineDeadError(EngineError):
    """The engine process has exited, so no request is processed any more."""


class PromptTooLongError(RequestError):
    """The prompt does not fit into the context. The message is vLLM's, because clients parse it."""

    def __init__(self, num_tokens: int, most: int) -> None:
        """`num_tokens` may equal `most`, because a prompt of `most` tokens leaves no room for the answer."""
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
