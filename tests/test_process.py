import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from harmony_diffusion.process import keep_freed_memory

kept = keep_freed_memory()
np.ones(4 << 20, np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(4 << 20, np.float32)
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(program=FAULTS, **environment):
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "HARMONY_KEEP_MEMORY")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True)
    kept, count = map(int, done.stdout.split())
    return bool(kept), count


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_freed_memory_is_kept_and_the_switch_turns_it_off():
    kept, count = faults()
    off, plain = faults(HARMONY_KEEP_MEMORY="0")
    assert kept and not off
    assert count < plain / 5


def test_settings_of_the_user_come_first():
    assert faults(MALLOC_TRIM_THRESHOLD_="131072")[0] is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_importing_the_library_changes_no_allocator():
    program = FAULTS.replace("kept = keep_freed_memory()", "kept = False")
    program = program.replace(
        "import numpy", "import harmony_diffusion.cli, harmony_diffusion.images.picture, numpy"
    )
    assert faults(program)[1] > 5 * faults()[1]
