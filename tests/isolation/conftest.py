"""Every anomaly is tried with all sessions on one instance, and with sessions on two in turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Server
from tests.isolation.sessions import Cluster
from tests.pgext.instances import two_instances


@pytest.fixture(scope="package", params=["one instance", "two instances"])
def cluster(request: pytest.FixtureRequest, cluster: Server) -> Iterator[Cluster]:
    if request.param == "one instance":
        yield Cluster((cluster.dsn,))
        return
    with two_instances() as dsns:
        yield Cluster(dsns)
