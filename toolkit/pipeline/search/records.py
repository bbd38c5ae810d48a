"""Results in the search folder, each with a hash of what it depends on, so that a second search reads them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.core.errors import UserError
from toolkit.core.files import json_hash, read_json, write_atomic


def recorded(file: Path, depends_on: Any, compute: Callable[[], Any]) -> Any:
    """Returns a result from its file if it depends on the same values, else computes and stores it.

    Args:
        file: JSON file of the result.
        depends_on: JSON values that determine the result.
        compute: Returns the result, as JSON values.

    Raises:
        UserError: The file is damaged.
    """
    key = json_hash(depends_on)
    if file.is_file():
        stored = read_json(file)
        if not isinstance(stored, dict) or not {"key", "value"} <= stored.keys():
            raise UserError("not a result of a search", where=str(file), instead="delete the file")
        if stored["key"] == key:
            return stored["value"]
    value = compute()
    write_atomic(file, json.dumps({"key": key, "value": value}))
    return value
