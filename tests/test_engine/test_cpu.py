"""Freed memory stays in the process."""

import subprocess
import sys

SCRIPT = """
import resource
import numpy as np
from mm_sop.engine.cpu import prepare_cpu

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        arrays = [np.ones(2**20) for _ in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = page_faults()
prepare_cpu()
page_faults()
print(first, page_faults())
"""


def test_large_arrays_reuse_their_pages():
    output = subprocess.run([sys.executable, '-c', SCRIPT], check=True, capture_output=True, text=True).stdout
    before, after = map(int, output.splitlines()[-1].split())
    assert before > 10_000
    assert after < 100
