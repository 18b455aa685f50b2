"""`harmony app` in a process of its own, for tests."""

import os
import signal
import subprocess
import sys


class Server:
    """`harmony app` in a process of its own."""

    def __init__(self, *options):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable,
            "-m",
            "harmony_diffusion.cli",
            "app",
            "--port",
            "0",
            "--no-browser",
            *options,
        ]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        line = self.process.stdout.readline()
        assert "http://" in line, self.process.stderr.read()
        self.url = line.split()[2]

    def stop(self, number=signal.SIGINT):
        """End it, and return its exit status and what it said."""
        self.process.send_signal(number)
        try:
            _, errors = self.process.communicate(timeout=30)
        finally:
            self.process.kill()
        return self.process.returncode, errors
