"""Paths of the package and, in a checkout, of the repository's files.

No other module computes a path from `__file__`, so moving a module does not change any path.
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
REPOSITORY = PACKAGE.parent  # site-packages if the toolkit is installed without a checkout
NATIVE = PACKAGE / "native"  # C++ sources of the sparse kernels; a link to the repository's `native/`
INCLUDED = PACKAGE / "models" / "included"  # sparse models that come with the package
RECIPES = REPOSITORY / "yaml_configs"
SCOREBOARD = REPOSITORY / "benchmarks" / "scoreboard.yaml"
PINS = REPOSITORY / "constraints.txt"
