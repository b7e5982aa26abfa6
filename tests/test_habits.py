"""Format, style, types, and notebooks without outputs."""

import subprocess
import sys

from repo import ROOT


def test_lint_passes():
    command = ["make", f"PYTHON={sys.executable}", "lint"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
