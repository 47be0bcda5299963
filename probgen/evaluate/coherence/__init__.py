"""Whether the parts that a model draws belong together, by judges whose own accuracy stands beside every figure."""

from probgen.evaluate.coherence.beside import coherence_lines, coherence_of
from probgen.evaluate.coherence.judges import Judge, read_by
from probgen.evaluate.coherence.measure import coherence
from probgen.evaluate.coherence.table import Coherence, Figure

__all__ = ["Coherence", "Figure", "Judge", "coherence", "coherence_lines", "coherence_of", "read_by"]
