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

# Examples of properties: the same few ones each time, or with HYPOTHESIS_PROFILE=long
# many new ones.
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

# The tensors of the tests are tiny; threads that wait for each other would only slow
# them down.
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def chromium():
    """A browser for a file of tests. Its event loop would disturb other files that have one."""
    if browser.executable() is None:
        (pytest.fail if os.environ.get("FBT_NEEDS_BROWSER") else pytest.skip)(
            browser.MISSING
        )
    with browser.chromium() as opened:
        yield opened


@pytest.fixture(scope="session")
def native():
    """The steps in C++, for files whose cases are of all backends."""
    fbt.build_native()


@pytest.fixture
def window(chromium):
    """A window of its own, and what goes wrong in it."""
    with watched(chromium) as opened:
        yield opened


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    """The address of the built book on a server of this machine."""
    with serving(functools.partial(Quiet, directory=str(build_book.HTML))) as address:
        yield address
