"""The renderer: text to token ids and back, everything that blocks in one thread pool."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from server.config import ModelFiles, RendererConfig
from server.renderers.detokenizer import IncrementalDetokenizer
from server.renderers.make_async import make_async
from server.renderers.prompts import ChatOptions, RenderedPrompt, TextOptions

P = ParamSpec("P")
R = TypeVar("R")


class BaseRenderer(ABC):
    """Owns the one pool (`--renderer-num-workers`) through which templates, tokenizers and decoding run.

    Tokenizers are not thread-safe: a subclass keeps one per thread. The `..._async` methods are called on the event
    loop and run their sync twin in the pool; `create_detokenizer`, `token_text`, `token_bytes` and the properties are
    cheap and run on the loop itself.
    """

    max_model_len: int | None = None
    """Most tokens of a prompt and its output; set once the engine has told it."""

    def __init__(self, files: ModelFiles, config: RendererConfig, *, executor: Executor | None = None) -> None:
        """`executor` takes the pool's place and stays the caller's to close."""
        self.files = files
        self.config = config
        self._owns_executor = executor is None
        self._executor = executor or ThreadPoolExecutor(config.num_workers, thread_name_prefix="renderer")
        self.render_chat_async = make_async(self.render_chat, self._executor)
        self.render_text_async = make_async(self.render_text, self._executor)
        self.detokenize_async = make_async(self.detokenize, self._executor)
        self.encode_words_async = make_async(self.encode_words, self._executor)

    async def run_in_pool(self, func: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs other work that would hold up the event loop, such as compiling a grammar, in the renderer's pool."""
        return await make_async(func, self._executor)(*args, **kwargs)

    @abstractmethod
    def render_chat(self, messages: list[dict[str, Any]], options: ChatOptions) -> RenderedPrompt:
        """The prompt of a conversation in OpenAI's form.

        Raises:
            RequestError: the messages, the options or the template do not allow it.
        """

    @abstractmethod
    def render_text(self, prompt: str | list[int], options: TextOptions) -> RenderedPrompt:
        """The prompt of a plain text, or of token ids, which are checked against the vocabulary.

        Raises:
            RequestError: the prompt is empty, too long, or holds an id that is no token.
        """

    @abstractmethod
    def detokenize(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        """The text of a whole sequence.

        Raises:
            RequestError: an id is no token.
        """

    @abstractmethod
    def encode_words(self, texts: list[str]) -> list[list[int]]:
        """The token sequences that write these words, at the start of a text and behind a space (`bad_words`).

        Raises:
            RequestError: a word has no tokens.
        """

    @abstractmethod
    def token_text(self, token_id: int) -> str:
        """How log-probabilities show one token; a part of a character becomes U+FFFD."""

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes that one token adds to a text."""

    @abstractmethod
    def create_detokenizer(  # noqa: PLR0913 - these are the request's fields
        self,
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        min_tokens: int = 0,
        prompt_token_ids: Sequence[int] = (),
    ) -> IncrementalDetokenizer:
        """What turns the tokens of one output into text; stop strings end it after `min_tokens` tokens."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """One more than the highest token id."""

    @property
    @abstractmethod
    def eos_token_id(self) -> int | None:
        """The tokenizer's end-of-sequence token."""

    @property
    @abstractmethod
    def chat_template(self) -> str | None:
        """The template that conversations are rendered with when there are no tools."""

    @abstractmethod
    def tokenizer_info(self) -> dict[str, Any]:
        """The tokenizer's configuration, as JSON takes it."""

    def warm_up(self) -> None:  # noqa: B027 - a renderer may have nothing to do here
        """Does what the first request should not wait for; it may hold the interpreter for a tenth of a second."""

    def close(self) -> None:
        """Stop the pool; what has not begun is cancelled."""
        if self._owns_executor:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
