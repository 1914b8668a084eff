from tools.soak.gauges import parse_gauges
from tools.soak.results import Gauges

TEXT = """# HELP vllm:num_requests_running Requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a"} 2.0
vllm:num_requests_running{engine="1",model_name="a"} 1.0
vllm:num_requests_waiting{engine="0"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 7.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
other_metric 1
"""


def test_gauges_of_all_engines_are_added_up():
    assert parse_gauges(TEXT) == Gauges(num_running=3, num_waiting=0, kv_cache_usage=0.25)


def test_missing_gauges_are_none():
    assert parse_gauges("") == Gauges(num_running=None, num_waiting=None, kv_cache_usage=None)
    assert parse_gauges("other_metric 1\n").num_running is None
