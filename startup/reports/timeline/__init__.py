"""Measures a start. `timeline` collects spans, `report` presents them, and `history` keeps their times."""
