"""Names the cause of a failure in a log. An addition: nothing imports it. Begin with `first_cause.py`."""
