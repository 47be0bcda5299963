"""How a hidden state moves: the part of a hidden Markov model that knows nothing of the data.

Transitions hold the initial distribution and the moves of all states; ``with_states(K)`` makes one of another size. The
first observation is emitted by the initial state: no move comes before it.
"""

from probgen.transitions.durations import Durations
from probgen.transitions.factorial import Factorial
from probgen.transitions.inputs import InputDriven
from probgen.transitions.markov import Markov, banded, cyclic, left_right
from probgen.transitions.transitions import Transitions

__all__ = ["Durations", "Factorial", "InputDriven", "Markov", "Transitions", "banded", "cyclic", "left_right"]
