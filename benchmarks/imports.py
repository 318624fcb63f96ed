"""What `import nnsight` costs after `import torch`, in fresh processes."""

from __future__ import annotations

import statistics
import subprocess

_PROGRAM = "import time, torch; t = time.perf_counter(); import nnsight; print(time.perf_counter() - t)"


def time_imports(pythons: dict[str, str], rounds: int) -> dict[str, float]:
    """Return the median time of the import by contender, in milliseconds; the first round only fills the file cache."""
    samples: dict[str, list[float]] = {name: [] for name in pythons}
    for number in range(rounds + 1):
        for name, python in pythons.items():
            # Isolated: what is measured is what is installed.
            run = subprocess.run([python, "-I", "-c", _PROGRAM], capture_output=True, text=True, check=True)
            if number:
                samples[name].append(float(run.stdout) * 1000)
    return {name: statistics.median(times) for name, times in samples.items()}
