"""Settings of a process, for programs of this project alone: the command line, `train` and `eval`.

Importing the library changes nothing: the allocator belongs to the program.
"""

import contextlib
import ctypes
import os
import sys

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 256 << 20  # bytes; larger blocks return to the system at once
SWITCH = "HARMONY_KEEP_MEMORY"


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory for the next allocation.

    By default glibc returns large blocks to the system, and each new image costs thousands of page faults:
    up to half of the processor time. Blocks above 256 MiB are returned as before. `HARMONY_KEEP_MEMORY=0` in
    the environment switches this off; variables of glibc (`MALLOC_TRIM_THRESHOLD_`, …) come first.

    Returns:
        Whether the settings were made; they exist in glibc only.
    """
    own = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    if os.environ.get(SWITCH) == "0" or any(name in os.environ for name in own):
        return False
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # -1: never return the end of the heap.
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT) and mallopt(_M_TRIM_THRESHOLD, -1))


def return_freed_memory() -> None:
    """Give freed memory back to the system, where the C library can (glibc)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def wait_without_spinning() -> None:
    """Let threads of PyTorch sleep while they wait; call this before PyTorch is imported.

    Threads that spin take the cores from those that work. `OMP_WAIT_POLICY` in the environment comes first.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
