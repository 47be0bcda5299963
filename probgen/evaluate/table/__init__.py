"""Tables of any size, row by row: ``score_table``."""

from probgen.evaluate.table.scores import Scored, score_table

__all__ = ["Scored", "score_table"]
