"""Search for the size of a student before it is trained: depth, zeros and pattern, by latency and one-shot scores."""
