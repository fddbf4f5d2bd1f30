"""Static n-gram tables: built from text once, mapped into memory, looked up natively.

`python -m cascade_engine.tables build` makes one, `info` describes one.
"""

from cascade_engine.tables.build import BuildOptions, build_table
from cascade_engine.tables.files import TableInfo, load_table, read_info, save_table
from cascade_engine.tables.shipped import prebuilt_for

__all__ = [
    "BuildOptions",
    "TableInfo",
    "build_table",
    "load_table",
    "prebuilt_for",
    "read_info",
    "save_table",
]
