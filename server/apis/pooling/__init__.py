"""/v1/embeddings, /pooling, /classify, /score, /rerank. Begin with `serving.py`."""
