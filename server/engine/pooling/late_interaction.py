"""Scores by late interaction (MaxSim); token embeddings stay in the engine."""

from collections.abc import Iterable

from torch import Tensor

from server.engine.pooling.sequence import PoolingSequence


class QueryMissingError(LookupError):
    """A document names a query that is not kept: it was aborted or never arrived."""


class KeptQueries:
    """Token embeddings of queries that wait for their documents; used on the engine's thread."""

    def __init__(self) -> None:
        self._embeddings: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._embeddings)

    def interact(self, sequence: PoolingSequence, embeddings: Tensor) -> Tensor | None:
        """Keeps a query and returns None; returns the score of a document, and other embeddings unchanged.

        Raises:
            QueryMissingError: the document's query is not kept.
        """
        part = sequence.params.late_interaction
        if part is None:
            return embeddings
        if part.role == "query":
            self._embeddings[sequence.request_id] = embeddings.clone()
            return None
        query = self._embeddings.get(part.query_id)
        if query is None:
            raise QueryMissingError(f"the query {part.query_id!r} is not in the engine")
        return max_similarity(query, embeddings)

    def drop(self, request_ids: Iterable[str]) -> None:
        """Drops queries; ignores ids without one."""
        for request_id in request_ids:
            self._embeddings.pop(request_id, None)


def max_similarity(query: Tensor, document: Tensor) -> Tensor:
    """For each token of the query, the highest similarity to a token of the document; summed."""
    return (query @ document.T).amax(dim=-1).sum()
