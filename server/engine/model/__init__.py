"""Loading a model: read `model_loading`."""
