"""Imports torch, transformers and the engine without what serving never needs or what is known from earlier starts."""
