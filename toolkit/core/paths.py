"""Locations of the package and, in a checkout, of the repository's files around it.

The only place that computes a path from `__file__`: a module that moves to another folder changes no path.
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
REPOSITORY = PACKAGE.parent  # of an installed copy: the folder of all packages
NATIVE = PACKAGE / "native"  # C++ sources of the sparse kernels; a link to the repository's `native/`
RECIPES = REPOSITORY / "yaml_configs"
SCOREBOARD = REPOSITORY / "benchmarks" / "scoreboard.yaml"
PINS = REPOSITORY / "constraints.txt"
