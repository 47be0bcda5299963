"""Training: one loop for every family that descends a gradient, in one process or in several.

``torchrun --nproc-per-node 2 train.py`` runs an ordinary script in two processes, in which ``fit`` finds the other by
what torchrun says (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) or by the process group that the script has made. Every
rank is given the same rows and the same seed or none; ``fit`` takes the first rank's parameters and random numbers, and
shares each batch out, so that ``batch_size``, steps and learning rates mean what they do in one process. Gradients are
averaged and statistics of EM summed, and every rank ends with the same bits. Losses that draw no numbers train as in
one process to rounding; noise is keyed by step and rank. A budget counts the time of a step of all together.

Ranks with other rows than the first one's are refused: scales and first parameters are measured on all rows, so a
shard of the rows a rank is no option; large arrays can be memory-mapped. ``alone()`` is for a model of its own on each.
The first rank shows the progress and writes checkpoints, which all ranks must be able to read and which go on with as
many ranks. A rank that fails ends the fit on all; one that falls silent does so after ten minutes.

Families without a step to share (closed forms, kernel densities) fit all rows on each rank. Save on one rank only.
"""

from probgen.ranks import ALONE, Ranks, alone, joined
from probgen.training.loop import Player, _Run, of_kept_state, train
from probgen.training.progress import Progress
from probgen.training.schedule import Schedule

__all__ = ["ALONE", "Player", "Progress", "Ranks", "Schedule", "_Run", "alone", "joined", "of_kept_state", "train"]
