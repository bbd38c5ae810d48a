"""The Python interface of PruneOFA Toolkit: `compress`, `load`, `benchmark`; documented in `toolkit.api`."""

from toolkit.api import Best as Best
from toolkit.api import CheckFailed as CheckFailed
from toolkit.api import Result as Result
from toolkit.api import UserError as UserError
from toolkit.api import benchmark as benchmark
from toolkit.api import compress as compress
from toolkit.api import load as load
