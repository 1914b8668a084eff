"""The chart of phases, read as XML."""

from xml.etree import ElementTree

from tools.figures.chart import Bar, Group, draw_phases

_RECT = "{http://www.w3.org/2000/svg}rect"
_TEXT = "{http://www.w3.org/2000/svg}text"
GROUPS = [
    Group("a < b", [Bar("plain", {"imports": 6.0, "weights": 3.0, "first token": 1.0}), Bar("ours", {"imports": 2.5})]),
    Group("no kernel runs", [Bar("plain", {"CUDA graphs": 0.0, "server": 0.25})]),
]


def _bars(svg: str) -> dict[str, list[tuple[float, float]]]:
    """Tooltip -> begin and width of each part of a bar with this tooltip."""
    parts: dict[str, list[tuple[float, float]]] = {}
    for rect in ElementTree.fromstring(svg).iter(_RECT):
        for tip in rect:
            parts.setdefault(tip.text or "", []).append((float(rect.attrib["x"]), float(rect.attrib["width"])))
    return parts


def test_parts_adjoin_and_the_longest_bars_of_all_groups_are_equally_long():
    parts = _bars(draw_phases(GROUPS))
    ((begin, width),) = parts["imports 6.00 s"]
    assert parts["weights 3.00 s"] == [(begin + width, width / 2)]
    assert parts["imports 2.50 s"] == [(begin, round(width * 2.5 / 6, 1))]
    assert parts["server 0.25 s"] == [(begin, round(width * 10 / 6, 1))]


def test_texts_have_titles_labels_totals_seconds_and_the_phases_that_a_bar_has():
    texts = [text.text for text in ElementTree.fromstring(draw_phases(GROUPS, notes=["2 CPUs"])).iter(_TEXT)]
    assert {"a < b", "plain", "ours", "10.0 s", "2.50 s", "no kernel runs", "0.25 s", "2 CPUs"} <= set(texts)
    assert {"imports", "weights", "server", "first token"} <= set(texts)
    assert not {"workers", "CUDA graphs"} & set(texts)
