"""Small tables in every format of data files, and where errors say that their rows stand."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.recipe import Task

COLUMNS = ("one", "two", "label")
GOOD = [("a", "b", "no"), ("c", "d", "yes"), ("e", "f", "no")]
FORMATS = ("tsv", "csv", "jsonl", "parquet")
COUNTED = "3 training rows, 3 evaluation rows; classes no (2), yes (1)"  # of GOOD, as train and as dev
NULLS = ("jsonl", "parquet")  # the formats that tell nothing from an empty text


def write(folder: Path, suffix: str, table: list[tuple], columns=COLUMNS, name: str = "file") -> str:
    """A table as a file of the format that the suffix names."""
    path = folder / f"{name}.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table(dict(zip(columns, zip(*table, strict=True), strict=True))), path)
    elif suffix == "jsonl":
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in table]
        path.write_text("".join(line + "\n" for line in lines))
    else:
        with path.open("w", newline="") as stream:
            csv.writer(stream, delimiter="\t" if suffix == "tsv" else ",").writerows([columns, *table])
    return str(path)


def place(path: str, row: int) -> str:
    """Where row 1, 2, … of a file stands, as errors name it."""
    if path.endswith("parquet"):
        return f"{path}, row {row}"
    return f"{path}:{row if path.endswith('jsonl') else row + 1}"


def pairs(path: str, **values) -> Task:
    return Task(**{"train": path, "dev": path, "columns": ("one", "two"), "labels": ("no", "yes")} | values)
