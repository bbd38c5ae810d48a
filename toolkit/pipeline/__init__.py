"""The stage graph, its caching and its execution. Start with `graph.py`."""
