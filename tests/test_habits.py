"""The habits that tools can hold: format, style, types, and notebooks without outputs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_tree_is_clean():
    run = subprocess.run(
        ["make", f"PYTHON={sys.executable}", "lint"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
