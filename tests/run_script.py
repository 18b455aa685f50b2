"""Run a script of `train` or `eval` in this process, which saves the imports of a process of its own."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from unittest.mock import patch


def run_script(
    script: Path, *arguments: object, expect: int | None = 0
) -> "subprocess.CompletedProcess[str]":
    """Run a script, and check that it ends with the expected code; None stands for any code but 0.

    The allocator belongs to the process of the tests, so the script must not change it.
    """
    command = [str(part) for part in (script, *arguments)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        patch.object(sys, "argv", command),
        patch.object(sys, "path", [str(script.parent), *sys.path]),
        patch.dict(os.environ, {"HARMONY_KEEP_MEMORY": "0"}),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        # As Python itself does: print warnings, and raise none of them.
        warnings.resetwarnings()
        warnings.showwarning = lambda message, *_: print(message, file=err)
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=err)
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    assert code != 0 if expect is None else code == expect, err.getvalue()
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())
