"""`python -m toolkit` is `pruneofa`."""

from toolkit.cli import main

main()
