"""Read Parquet files."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from metarec_shared.errors import DataError
from metarec_shared.readers.table import Table, check_names, row_places


def read_parquet(path: Path) -> Table:
    """Read every column of a Parquet file.

    Raises:
        DataError: The file is damaged, is no Parquet file, or names a column twice.
    """
    try:
        with pa.parquet.ParquetFile(path) as file:
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name}: damaged, or no Parquet file") from error
    check_names(path.name, table.column_names)
    if not table.column_names:
        raise DataError(f"{path.name}: has no columns")
    columns = {name: _decoded(table.column(name)) for name in table.column_names}
    return Table(source=path.name, columns=columns, where=row_places)


def _decoded(column: pa.ChunkedArray) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.combine_chunks()
