"""The commands, a verb a file, in the order in which the help shows them."""

from probgen.cli.app import app, main

from probgen.cli.commands.fit import fit  # isort: skip
from probgen.cli.commands.score import score  # isort: skip
from probgen.cli.commands.sample import sample  # isort: skip
from probgen.cli.commands.compare import compare  # isort: skip
from probgen.cli.commands.codec import compress, decompress  # isort: skip
from probgen.cli.commands.card import card  # isort: skip

__all__ = ["app", "card", "compare", "compress", "decompress", "fit", "main", "sample", "score"]
