"""Test all dark pages in a browser, wide and narrow, from disk."""

import pytest
from browsing import HTML, KINDS, faults_of_pages


@pytest.fixture(scope="module")
def faults(chromium):
    return faults_of_pages(chromium, HTML.as_uri(), "dark")


@pytest.mark.parametrize("kind", KINDS)
def test_dark_pages_have_no_faults(faults, kind):
    assert not faults[kind]
