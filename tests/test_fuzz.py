"""A moment of `make fuzz`."""

from pathlib import Path

import fuzz
import pytest
from rewriting import rewritten_while_loaded

EXAMPLES = {"model": 150}


@pytest.mark.parametrize("name", fuzz.LOADERS)
def test_whatever_is_read_gives_an_object_or_one_clear_error(name: str) -> None:
    tried, _ = fuzz.fuzz(fuzz.LOADERS[name], EXAMPLES.get(name, 100))
    assert tried


def test_what_is_loaded_while_it_is_rewritten_is_one_of_the_models(
    tmp_path: Path,
) -> None:
    counts = rewritten_while_loaded(tmp_path, seconds=3)
    assert counts["loaded"] and counts["refused"]
