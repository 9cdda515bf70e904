"""Replicas of one service, side by side."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from live_service import FAST, SERVICE, right_answer
from ray import serve

from lab.serving import wait_until

CUSTOMER, AT_ONCE = "customer_123", 16


@pytest.mark.skipif(FAST, reason="the hash sends a customer to one replica")
def test_a_client_cannot_tell_which_replica_has_answered(
    store, fleet, launch_production, histories
):
    body = json.dumps({"sequence_data": histories[CUSTOMER]}).encode()
    headers = {"serve_multiplexed_model_id": CUSTOMER}
    answers = {}  # by replica

    def both_have_answered() -> bool:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            asked = [
                pool.submit(requests.post, f"{SERVICE}/pair", body, headers=headers, timeout=30)
                for _ in range(AT_ONCE)
            ]
        for answer in (request.result() for request in asked):
            answers.setdefault(answer.headers["X-Replica-Id"], set()).add(answer.content)
        return len(answers) == 2

    launch_production("pair", {"num_replicas": 2, "max_ongoing_requests": 2})  # so both are needed
    try:
        wait_until(both_have_answered, "both replicas have answered", 60)
    finally:
        serve.delete("pair")
    right = right_answer(fleet[CUSTOMER], CUSTOMER, body)
    assert list(answers.values()) == [{right}] * 2
