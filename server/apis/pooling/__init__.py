"""/v1/embeddings, /pooling, /classify, /score, /rerank. Begin with `base.py`."""
