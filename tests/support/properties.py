"""Property tests: hypothesis makes the same values in every run, and shrinks values with which a test fails.

Tests import `given` from this module. The `given` of hypothesis would choose other values in each run, some
of them from the modules that other tests have imported.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import configuration, given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers

__all__ = ["given", "json_values", "pieces", "settings", "st"]

configuration.set_hypothesis_home_dir(Path(__file__).parents[2] / "build" / "hypothesis")
providers._get_local_constants = lambda: providers._local_constants
settings.register_profile("fixed", derandomize=True, deadline=None, database=None, max_examples=50)
settings.load_profile("fixed")


def json_values(texts: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Nested lists and objects, with `texts` as their innermost values."""
    return st.recursive(
        texts,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
        max_leaves=20,
    )


@st.composite
def pieces(draw: st.DrawFn, text: str) -> list[str]:
    """The text, cut into pieces at any places."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    places = pairwise([0, *cuts, len(text)])
    return [text[begin:end] for begin, end in places]
