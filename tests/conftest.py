"""One thread a process, its subprocesses included: small matrices are slower on two, and ``pytest -n 2`` has two.

Set before torch is imported; ``OMP_NUM_THREADS=4 pytest`` still means four.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
