"""A moment of `make fuzz`."""

import fuzz
import pytest

EXAMPLES = {"model": 150}


@pytest.mark.parametrize("name", fuzz.LOADERS)
def test_whatever_is_read_gives_an_object_or_one_clear_error(name: str) -> None:
    tried, _ = fuzz.fuzz(fuzz.LOADERS[name], EXAMPLES.get(name, 100))
    assert tried
