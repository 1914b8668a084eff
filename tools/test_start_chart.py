"""The README's chart of starts: a standalone, well-formed file whose bars show the medians."""

import re
from xml.etree import ElementTree

import pytest

from tools.start_chart import StartupResult, draw_startup_svg
from vllm_cli.bench.results import Machine, Spread
from vllm_cli.bench.startup.results import StartupSide, StateResult

SVG = "{http://www.w3.org/2000/svg}"
WARM = {"vllm-cli": Spread(2.0, 1.5, 3.0), "<vllm & serve>": Spread(8.0, 7.0, 10.0)}


def result(*states: dict[str, Spread]) -> StartupResult:
    names = ["warm", "cold-pages"][: len(states)]
    sides = [
        StartupSide(
            name=name,
            target="serve",
            model="m",
            version=None,
            first_text=None,
            conditions=[
                StateResult(condition=state, summary={"first_token_s": spreads[name]}, phases={}, rounds=[])
                for state, spreads in zip(names, states, strict=True)
            ],
        )
        for name in states[0]
    ]
    return StartupResult(
        schema="vllm-cli/bench-startup",
        schema_version=3,
        created_at="2026-11-21T07:00:00+00:00",
        machine=Machine(system="Linux", processor="Fast CPU", num_cpus=2, memory_gib=8, python="3.12"),
        settings={"states": names, "num_rounds": 5},
        sides=sides,
        ratios=[],
    )


def draw(*states: dict[str, Spread]) -> ElementTree.Element:
    return ElementTree.fromstring(draw_startup_svg(result(*states)))


def texts(svg: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in svg.iter(f"{SVG}text")]


def bars(svg: ElementTree.Element) -> list[ElementTree.Element]:
    return list(svg.iter(f"{SVG}rect"))[1:]


def test_bars_are_as_long_as_the_medians():
    widths = [float(bar.get("width", "")) for bar in bars(draw(WARM))]
    assert widths[1] / widths[0] == pytest.approx(8 / 2, rel=0.01)


def test_states_share_one_scale():
    svg = draw(WARM, {"vllm-cli": Spread(4.0, 4.0, 4.0), "<vllm & serve>": Spread(16.0, 16.0, 16.0)})
    widths = [float(bar.get("width", "")) for bar in bars(svg)]
    assert [width / widths[0] for width in widths] == pytest.approx([1, 4, 2, 8], rel=0.01)
    assert {"from warm", "from cold-pages"} <= set(texts(svg))


def test_whiskers_reach_from_the_minimum_to_the_maximum():
    svg = draw(WARM)
    bar = bars(svg)[0]
    scale = float(bar.get("width", "")) / 2.0
    left = float(bar.get("x", ""))
    lines = [
        line for line in svg.iter(f"{SVG}line") if line.get("class") != "grid" and line.get("y1") == line.get("y2")
    ]
    ends = [(float(line.get("x1", "")), float(line.get("x2", ""))) for line in lines]
    assert ends[0] == pytest.approx((left + 1.5 * scale, left + 3.0 * scale), abs=0.2)


def test_names_medians_machine_and_date_are_written():
    written = texts(draw(WARM))
    assert {"vllm-cli", "<vllm & serve>", "2.00 s", "8.00 s", "Time from exec to the first token"} <= set(written)
    assert "Fast CPU, 2 CPUs, 8 GiB; 2026-11-21" in written
    assert any(text.startswith("Medians of 5 alternating rounds") for text in written)


def test_the_chart_has_its_own_background_and_needs_no_other_file():
    drawn = draw_startup_svg(result(WARM))
    background = next(ElementTree.fromstring(drawn).iter(f"{SVG}rect"))
    assert background.get("fill") == "#ffffff"
    assert "currentColor" not in drawn
    assert not re.search(r"(href|url\(|@import)", drawn)


def test_everything_lies_within_the_frame():
    svg = draw(WARM)
    _, _, width, height = map(float, svg.get("viewBox", "").split())
    for element in svg.iter():
        for name, limit in (("x", width), ("x2", width), ("y", height), ("y2", height)):
            assert 0 <= float(element.get(name, 0)) <= limit
