"""One owner that serves."""

from __future__ import annotations

import pytest

from tests.adjudicator.driver import Driver


@pytest.fixture
def driver() -> Driver:
    driver = Driver()
    driver.sync()
    driver.now += 10
    return driver
