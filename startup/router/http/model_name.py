"""Chooses how the requested model is found in a body."""

from python_multipart.multipart import parse_options_header

from startup.router.http.form_scanner import MultipartScanner
from startup.router.http.json_scanner import JsonScanner
from startup.router.http.model_scanner import ModelScanner


def create_scanner(content_type: str) -> ModelScanner:
    """The scanner for a body of this media type; what is no multipart form is taken for JSON."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    return MultipartScanner(boundary) if kind == b"multipart/form-data" and boundary else JsonScanner()
