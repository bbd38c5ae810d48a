"""What runs, in which order, and what is cached. Read `graph.py` first."""
