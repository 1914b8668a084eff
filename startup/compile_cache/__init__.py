"""vLLM's compiled models: what they were compiled from, and archives of them in a place that machines share."""
