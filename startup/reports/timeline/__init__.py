"""Where the time of a start goes: `timeline` collects spans, `report` and `history` present and keep them."""
