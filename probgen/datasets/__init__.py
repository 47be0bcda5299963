"""Real data and toys whose density is known, and readers for the files that data come in."""

from probgen.datasets.captions import digit_words, fashion_captions
from probgen.datasets.dataset import Dataset
from probgen.datasets.files import read
from probgen.datasets.loading import load, names
from probgen.datasets.questions import Question, questions
from probgen.datasets.real import digits, earthquakes, fashion_mnist, iris, melodies
from probgen.datasets.texts import capitals, kjv, write_kjv
from probgen.datasets.toys import checkerboard, eight_gaussians, moons

__all__ = [
    "Dataset", "Question", "capitals", "checkerboard", "digit_words", "digits", "earthquakes", "eight_gaussians",
    "fashion_captions", "fashion_mnist", "iris", "kjv", "load", "melodies", "moons", "names", "questions", "read",
    "write_kjv",
]  # fmt: skip
