"""One training loop: losses, teacher, hooks, several processes."""
