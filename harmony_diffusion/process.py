"""Settings of a process, for programs of this project alone: the command line, `train` and `eval`.

Importing the library changes nothing: the allocator belongs to the program.
"""

import contextlib
import ctypes
import os
import sys

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT = 256 << 20
SWITCH = "HARMONY_KEEP_MEMORY"


def keep_freed_memory(largest: int = LARGEST_KEPT) -> bool:
    """Make the C library keep freed memory for the next allocation.

    By default glibc returns large blocks to the system, and each new image costs thousands of page faults:
    up to half of the processor time. `HARMONY_KEEP_MEMORY=0` in the environment switches this off; variables
    of glibc (`MALLOC_TRIM_THRESHOLD_`, …) come first.

    Args:
        largest: Bytes of the largest block that is kept; larger ones return to the system at once. Networks
            in training need the default, 256 MiB, with which the end of the heap never returns. With less it
            returns when it is longer than `largest`, so that the peak of large pictures stays low.

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
    trim = -1 if largest >= LARGEST_KEPT else largest
    return bool(mallopt(_M_MMAP_THRESHOLD, largest) and mallopt(_M_TRIM_THRESHOLD, trim))


def return_freed_memory() -> None:
    """Give freed memory back to the system, where the C library can (glibc)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def wait_without_spinning() -> None:
    """Let threads of PyTorch sleep while they wait; call this before PyTorch is imported.

    Threads that spin take the cores from those that work. `OMP_WAIT_POLICY` in the environment comes first.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
