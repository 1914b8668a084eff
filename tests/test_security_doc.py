"""The links and the lists of open paths in docs/security.md match the code."""

import re
from pathlib import Path

from server.routes.guard import OPEN_PATHS, STATUS_PATHS

DOCUMENT = Path(__file__).parent.parent / "docs" / "security.md"


def test_every_link_has_a_target() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", DOCUMENT.read_text())
    assert len(links) > 20
    assert [link for link in links if not (DOCUMENT.parent / link).exists()] == []


def test_the_page_lists_the_paths_that_need_no_key() -> None:
    [sentence] = re.findall(r"\*\*No key is needed\*\* for (.*?), nor for", DOCUMENT.read_text(), re.DOTALL)
    assert set(re.findall(r"`([^`]+)`", sentence)) == OPEN_PATHS


def test_the_page_lists_the_paths_that_the_operator_may_close() -> None:
    [sentence] = re.findall(r"\*\*Nor is one needed\*\* for (.*?): ", DOCUMENT.read_text(), re.DOTALL)
    assert set(re.findall(r"`([^`]+)`", sentence)) == STATUS_PATHS
