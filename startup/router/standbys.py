"""The router's own standbys, one for each kind of server among its models: they make its starts warm."""

from collections.abc import Callable, Collection, Iterable
from functools import partial

from startup.on_request.own_standby import OwnStandby
from startup.router.model_entry import ModelEntry
from startup.serve_words import ServeWords
from startup.standby.kinds import kind_for


class Standbys:
    """Used on the main thread."""

    def __init__(self, find_model: Callable[[str], str | None]) -> None:
        """
        Args:
            find_model: the folder of a model that is on disk, by its entry's name.
        """
        self._find_model = find_model
        self._standbys: dict[str, OwnStandby] = {}

    def follow(self, kinds: Collection[str], entries: Iterable[ModelEntry]) -> list[OwnStandby]:
        """Starts those that are missing; returns those of kinds that are not needed any more, to be closed.

        Args:
            entries: of each kind, the first model's class and tokenizer are kept, too.
        """
        names: dict[str, str] = {}
        for entry in entries:
            names.setdefault(kind_of_entry(entry), entry.name)
        unneeded = [self._standbys.pop(kind) for kind in self._standbys.keys() - kinds]
        for kind in kinds:
            if kind not in self._standbys:
                self._standbys[kind] = OwnStandby(kind, partial(self._find_model, names.get(kind, "")))
        self.tend()
        return unneeded

    def tend(self) -> None:
        """Starts those that are due; called regularly."""
        for standby in self._standbys.values():
            standby.tend()

    def variables_for(self, entry: ModelEntry) -> dict[str, str]:
        """With these, the model's start is warm."""
        standby = self._standbys.get(kind_of_entry(entry))
        return {} if standby is None else standby.variables

    def memory_bytes(self) -> int:
        """PSS of all, a few seconds old."""
        return sum(standby.memory_bytes() for standby in self._standbys.values())

    def close(self) -> None:
        """Ends them."""
        for standby in self._standbys.values():
            standby.close()


def kind_of_entry(entry: ModelEntry) -> str:
    """The kind of template process for the model's start; empty for a command that is not ours."""
    if entry.foreign is not None:
        return ""
    words = ServeWords(entry.words)
    return kind_for(words.engine(entry.env.get("VCLI_ENGINE")), words)
