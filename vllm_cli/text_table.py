"""A table of plain text for the terminal."""

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]], *, are_figures: bool = False) -> list[str]:
    """One line per row; `are_figures` aligns all columns but the first at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_padded(row, widths, are_figures=are_figures)).rstrip() for row in rows]


def _padded(row: Sequence[str], widths: Sequence[int], *, are_figures: bool) -> list[str]:
    cells = zip(row, widths, strict=True)
    return [
        cell.rjust(width) if are_figures and index else cell.ljust(width) for index, (cell, width) in enumerate(cells)
    ]
