import functools
import os
from http.server import SimpleHTTPRequestHandler

import browser
import build_book
import pytest
import torch
from hypothesis import HealthCheck, settings
from serving import serving
from watching import watched

import fbt
from fbt import engines

# Property tests use the same few examples each time, or many new ones with
# HYPOTHESIS_PROFILE=long.
settings.register_profile("quick", max_examples=25, derandomize=True, deadline=None)
settings.register_profile(
    "long",
    max_examples=1000,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
settings.load_profile(PROFILE)
LONG = PROFILE == "long"

# Tests leave the fast engines on purpose; test_fast_path.py and test_autocast.py test
# the warnings.
engines._warned |= {"stack", "sequence", "bfloat16"}

# Files that take long begin first, so that no worker is left alone with one.
FIRST = "browser_light processes browser_weight browser_actions notebooks triton "
FIRST += "extremes install native experiments browser_views training elsewhere tools "
FIRST += "properties folder faults kills shipped browser_dark"

# With the tiny tensors of the tests, more threads are slower.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    places = {f"test_{name}": place for place, name in enumerate(FIRST.split())}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="module")
def chromium():
    """Yield a browser for one file of tests; its event loop would disturb others."""
    if browser.executable() is None:
        (pytest.fail if os.environ.get("FBT_NEEDS_BROWSER") else pytest.skip)(
            browser.MISSING
        )
    with browser.chromium() as opened:
        yield opened


@pytest.fixture(scope="session")
def native():
    """Build the native backend."""
    fbt.build_native()


@pytest.fixture
def window(chromium):
    """Yield a new window, and the errors in it."""
    with watched(chromium) as opened:
        yield opened


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    """Yield the address of a server of the built book."""
    with serving(functools.partial(Quiet, directory=str(build_book.HTML))) as address:
        yield address
