"""Who answers at the service's port is this cluster's Ray Serve, and nobody else."""

import os
import socket

import pytest
from live_service import FAST, HOST, PORT
from ray import serve

from lab.serving import require_free, start_serve


def test_a_serve_that_runs_stays_as_it_is(live_store):
    before = serve.status()
    start_serve()
    assert serve.status() == before


@pytest.mark.skipif(FAST, reason="HAProxy lets nobody listen beside it")
def test_a_program_that_shares_the_port_is_named(live_store):
    with (
        socket.create_server((HOST, PORT), reuse_port=True),  # as another Ray Serve would
        pytest.raises(RuntimeError, match=f"share port {PORT}, and would answer by turns") as said,
    ):
        start_serve()
    assert f"(process {os.getpid()})" in str(said.value)


def test_an_application_at_the_route_is_named_with_what_to_do(live_store):
    require_free("default")
    with pytest.raises(RuntimeError, match=r"serve\.delete\('default'\)"):
        require_free("forecast")
