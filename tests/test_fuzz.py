"""A short run of `make fuzz`."""

from pathlib import Path

import fuzz
import pytest
from rewriting import rewritten_while_loaded

EXAMPLES = {"model": 150}


@pytest.mark.parametrize("name", fuzz.LOADERS)
def test_loaders_return_an_object_or_raise_one_clear_error(name: str) -> None:
    tried, _ = fuzz.fuzz(fuzz.LOADERS[name], EXAMPLES.get(name, 100))
    assert tried


def test_a_model_loaded_while_it_is_rewritten_is_intact(
    tmp_path: Path,
) -> None:
    counts = rewritten_while_loaded(tmp_path, seconds=3)
    assert counts["loaded"] and counts["refused"]
