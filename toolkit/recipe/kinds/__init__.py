"""Rules for the keys of single kinds of tasks."""
