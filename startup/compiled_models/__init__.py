"""vLLM's compiled models: the values and sources that they depend on, and archives that machines share."""
