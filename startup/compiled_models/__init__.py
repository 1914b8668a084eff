"""vLLM's compiled models: what they were compiled from, and archives that machines share."""
