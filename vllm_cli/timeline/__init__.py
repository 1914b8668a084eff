"""`timeline`: begin at page.py."""
