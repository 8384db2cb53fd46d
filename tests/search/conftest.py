"""What the tests of sweeps on real Ray share."""

import pytest
from helpers.small_sweeps import prepared

from sesttune.search.ray_session import ray_session


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def ray(tiny):
    """One Ray for the tests of a module that do not need their own."""
    with ray_session(tiny[0]) as found:
        yield found
