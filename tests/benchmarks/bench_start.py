"""Seconds to import probgen and to show its help: python tests/benchmarks/bench_start.py"""

import shutil
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import probgen": [sys.executable, "-c", "import probgen"],
    "probgen --help": [shutil.which("probgen") or "probgen", "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
}


def seconds(command):
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main(runs=7):
    times = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    bare = statistics.median(times["python -c pass"])
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"{name:15} median {middle:.3f} s, beyond a bare interpreter {middle - bare:.3f} s")


if __name__ == "__main__":
    main()
