"""Bodies of /generative_scoring, how likely a model finds a token after each of several prompts: the request.

The response is that of /score.
"""

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from server.generation.request import MAX_LOGPROB_TOKEN_IDS
from server.http_body.fields import INEFFECTIVE, Counted, Hint, Priority, RequestBody, RequestId, TokenId

LabelIds = Annotated[list[int], Meta(min_length=1, max_length=MAX_LOGPROB_TOKEN_IDS)]


class GenerativeScoringRequest(RequestBody, kw_only=True, forbid_unknown_fields=True):
    """A query and the items to score; each prompt is the query and an item."""

    model: str | None = None
    query: str | list[TokenId]
    items: Annotated[list[str | list[TokenId]], Meta(min_length=1)]
    label_token_ids: LabelIds
    """The tokens that may follow; the score is the probability of the first one."""
    apply_softmax: bool = True
    """Whether the probabilities of the labels add up to 1; false gives those among all tokens."""
    item_first: bool = False
    add_special_tokens: bool = True
    """Whether the query begins with the tokenizer's special tokens."""
    cache_salt: Hint = None
    priority: Annotated[Priority, INEFFECTIVE] = 0
    request_id: RequestId | None = None

    @property
    def num_sequences(self) -> int:
        return len(self.items)

    def counted(self) -> Iterator[Counted]:
        yield Counted("max_prompts", "items", len(self.items))
