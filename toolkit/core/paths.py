"""Paths of the package and, in a checkout, of the repository's files.

No other module computes a path from `__file__`, so moving a module does not change any path.
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
REPOSITORY = PACKAGE.parent  # site-packages if the toolkit is installed without a checkout
NATIVE = PACKAGE / "native"  # C++ sources of the sparse kernels; a link to the repository's `native/`
INCLUDED = PACKAGE / "models" / "included"  # sparse models that come with the package
# Files of the repository that the package contains; links in a checkout, where this is the repository's file itself.
_SHIPPED = PACKAGE / "shipped"
RECIPES = (_SHIPPED / "yaml_configs").resolve()
SCOREBOARD = (_SHIPPED / "scoreboard.yaml").resolve()
PINS = (_SHIPPED / "constraints.txt").resolve()
IN_CHECKOUT = PINS.parent == REPOSITORY
# Measurements of published results; a package manager would delete those in its own folders.
MEASURED = SCOREBOARD.parent / "measured" if IN_CHECKOUT else Path("measured")
