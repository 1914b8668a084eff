"""/v1/embeddings, /v2/embed, /pooling, /classify, /score, /rerank. Begin with `base.py`."""
