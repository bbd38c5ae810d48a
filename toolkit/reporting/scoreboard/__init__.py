"""Published results against measurements made here."""
