"""Answers to preflight requests are those of Starlette, which vLLM uses."""

import itertools

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from base.security.cors import CorsPolicy
from base.server_settings import NetworkConfig


def test_cors_has_starlettes_answers():
    for origins, headers, methods, has_credentials in itertools.product(
        (("*",), ("https://a.example", "https://b.example")),
        (("*",), ("X-Own",), ()),
        (("*",), ("POST",)),
        (False, True),
    ):
        rules = {"allow_origins": origins, "allow_methods": methods, "allow_headers": headers}
        theirs = CORSMiddleware(Response(), **rules, allow_credentials=has_credentials)
        allowed = {name.replace("allow_", "allowed_"): rule for name, rule in rules.items()}
        ours = CorsPolicy(NetworkConfig(**allowed, allow_credentials=has_credentials))
        _compare(theirs, ours)


def _compare(theirs: CORSMiddleware, ours: CorsPolicy) -> None:
    for origin, method, asked, more in itertools.product(
        ("https://a.example", "https://c.example", "null"),
        ("POST", "GET", "QUERY", "post"),
        (None, "", "x-own", "x-own, Content-Type", "x-other"),
        ({}, {"Access-Control-Request-Private-Network": "true"}),
    ):
        sent = {"Origin": origin, "Access-Control-Request-Method": method, **more}
        sent |= {} if asked is None else {"Access-Control-Request-Headers": asked}
        expected = theirs.preflight_response(Headers(sent))
        answer = ours.answer_preflight({name.lower(): value for name, value in sent.items()})
        assert (answer.status, answer.text) == (expected.status_code, expected.body.decode()), sent
        expected_headers = {name: value for name, value in expected.headers.items() if not name.startswith("content-")}
        assert answer.headers == expected_headers, sent
