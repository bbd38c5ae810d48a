"""Rows of Parquet files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from toolkit.core.errors import UserError
from toolkit.data.tables.columns import Record, require_columns, require_unique_names


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """Yields the rows of a Parquet file; the location is the number of the row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        file = pq.ParquetFile(path)
        require_unique_names(file.schema_arrow.names, str(path))
        require_columns(columns, file.schema_arrow.names, str(path))
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except UnicodeDecodeError as error:
        where = f"{path}, row {number + 1} or later"
        raise UserError(f"not UTF-8 ({error})", where=where, instead="texts in UTF-8") from None
    except (pa.ArrowException, OSError) as error:  # a damaged page is a plain OSError
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"not a Parquet file ({str(error).splitlines()[0]})", where=str(path)) from None
