"""What one observation is: outside data in, checked tensors out. The only input check of the library.

Every event takes what users have (NumPy, torch, pandas, polars, Arrow, lists, dicts, csv and Parquet paths), names
unusable cells by row and column, never drops one, and gives results back in the form that came in.
"""

from probgen.events.array import Array
from probgen.events.bpe import BPE
from probgen.events.cells import Parts, Ragged, row_hash, take
from probgen.events.event import Checked, Event, arguments, steps_of
from probgen.events.inference import infer
from probgen.events.panel import Panel
from probgen.events.record import Record
from probgen.events.sequences import Series
from probgen.events.table import Category, Column, Count, Real, Table
from probgen.events.text import Text
from probgen.events.words import Words

__all__ = [
    "BPE",
    "Array",
    "Category",
    "Checked",
    "Column",
    "Count",
    "Event",
    "Panel",
    "Parts",
    "Ragged",
    "Real",
    "Record",
    "Series",
    "Table",
    "Text",
    "Words",
    "arguments",
    "infer",
    "row_hash",
    "steps_of",
    "take",
]  # fmt: skip
