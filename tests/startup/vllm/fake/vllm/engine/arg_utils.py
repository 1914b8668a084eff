"""Turns arguments into the engine's configuration."""

import argparse

from vllm.config import EngineConfig, create_engine_config


class EngineArgs:
    @staticmethod
    def create_engine_config(args: argparse.Namespace) -> EngineConfig:
        return create_engine_config(args)
