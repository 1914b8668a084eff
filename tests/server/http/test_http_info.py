"""Models, tokenization, the description of the API, and the status page with its figures."""

import base64
import hashlib
import re
import subprocess
import sys
from pathlib import Path

from base.status_page import page
from server.terms.types import EngineStats


def test_openapi_names_the_routes_that_exist(server):
    for path, operations in server.get("/openapi.json").json()["paths"].items():
        response = server.get(path.replace("{model}", "smol"))
        assert response.status_code == (200 if "get" in operations else 405), path
        if path != (absent := path.replace("{model}", "x")) and "get" in operations:
            assert str(server.get(absent).status_code) in operations["get"]["responses"]


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_page_and_its_policy_allow_only_its_own_style_and_script_and_no_other_address(server):
    answer = server.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    (style,) = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    assert (policy["style-src"], policy["script-src"]) == (_hash(style), _hash(script))
    assert (policy["default-src"], policy["connect-src"]) == ("'none'", "'self'")
    assert "frame-ancestors" in policy
    text = answer.text
    for library in Path(page.__file__).with_name("vendor").glob("*.js"):
        assert library.read_text() in text
        text = text.replace(library.read_text(), "")
    addresses = set(re.findall(r"https?://[^\s\"'`]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}, "except the name of the SVG namespace"
    assert not re.findall(r"\bon\w+=|style=\"|@import|url\(", text)


_HOLD = "held = b'a' * (1 << 28); print(flush=True); __import__('sys').stdin.read()"
"""A program with 256 MiB that no other process shares."""


def test_figures_come_from_the_engine_its_process_and_the_metrics(serve, engine):
    server = serve()
    before = server.get("/status.json").json()["live"]
    server.complete(max_tokens=3)
    engine.stats = EngineStats(3, 4, 0.25, 100, 40)
    body = server.get("/status.json").json()
    live = body["live"]
    assert (body["status"], body["model"], body["version"]) == ("ready", "smol", "1.2.3")
    assert (live["num_running"], live["num_waiting"], live["kv_cache_usage"]) == (3, 4, 0.25)
    assert (live["prefix_cache_queries"], live["prefix_cache_hits"]) == (100, 40)
    assert live["generation_tokens"] - before["generation_tokens"] == 3
    assert live["prompt_tokens"] - before["prompt_tokens"] == server.complete().json()["usage"]["prompt_tokens"]
    assert live["time_s"] > before["time_s"]
    with subprocess.Popen([sys.executable, "-c", _HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline()
        grown = server.get("/status.json").json()["live"]["memory_bytes"] - live["memory_bytes"]
        child.communicate()
    assert live["memory_bytes"] > 1 << 20
    assert grown > 1 << 27, "the memory of all processes"
    assert live["uptime_s"] == 60.0
