"""The parser of `vllm`."""

import argparse
import sys


class FlexibleArgumentParser(argparse.ArgumentParser):
    """A parser whose `--help=TOPIC` prints a part of the help. Flags may have underscores."""

    def parse_args(self, args=None, namespace=None):
        topic = next((word for word in sys.argv if word.startswith("--help=")), None)
        if topic is not None:
            print(f"fake vLLM's help about {topic.removeprefix('--help=')}")
            raise SystemExit(0)
        words = sys.argv[1:] if args is None else args
        return super().parse_args([_with_dashes(word) for word in words], namespace)


def human_readable_int(value: str) -> int:
    return int(float(value[:-1]) * 1000) if value.endswith("k") else int(value)


def optional_type(return_type):
    def _optional_type(val: str):
        return None if val in ("", "None") else return_type(val)

    return _optional_type


def _with_dashes(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if word.startswith("--") else word
