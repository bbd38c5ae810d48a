"""Scoreboard of published results and our measurements of them."""
