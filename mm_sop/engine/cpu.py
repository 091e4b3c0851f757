"""Process settings that make training on a CPU faster without changing a result."""

import ctypes
import os

# Parameters of glibc's mallopt
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def prepare_cpu() -> None:
    """Limit the cache of compiled kernels, and keep freed memory in the process.

    oneDNN caches a compiled kernel for each shape, and the number of masked patches changes in every iteration. glibc
    returns large freed blocks to the system, which clears them again for the next step: more than ten thousand page
    faults in an iteration of a small network. Environment variables that are set already take precedence.
    """
    os.environ.setdefault('ONEDNN_PRIMITIVE_CACHE_CAPACITY', '128')
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is None:
        return
    if 'MALLOC_MMAP_THRESHOLD_' not in os.environ:
        mallopt(_MMAP_THRESHOLD, 2**30)
    if 'MALLOC_TRIM_THRESHOLD_' not in os.environ:
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
