"""A scheduler that tests drive."""

from collections.abc import Iterator

import pytest

from .scheduler_driver import Driver, wait_until


@pytest.fixture
def driver() -> Iterator[Driver]:
    driver = Driver()
    wait_until(lambda: driver.engine)
    yield driver
    driver.scheduler.stop(60)
    assert driver.ended.is_set()
