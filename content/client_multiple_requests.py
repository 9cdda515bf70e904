"""Ask the service for the forecasts of several customers, in random order."""

import os
import random
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import requests

SERVICE = os.environ.get("SERVICE_URL", "http://127.0.0.1:8000")
CUSTOMERS = tuple(f"customer_{suffix}" for suffix in ("123", "456", "789", "abc", "def", "hij"))
REQUESTS = 100
HISTORY_DAYS = 28


class Answer(NamedTuple):
    customer_id: str
    forecast: list[float]
    cold: bool  # the request waited for the store, says the service
    latency_ms: float


def ask(session: requests.Session, customer_id: str, history: list[int]) -> Answer:
    """Send one request. Raises requests.HTTPError for any answer but 200."""
    started = time.perf_counter()
    response = session.post(
        SERVICE,
        headers={"serve_multiplexed_model_id": customer_id},
        json={"sequence_data": history},
        timeout=10,
    )
    latency_ms = (time.perf_counter() - started) * 1000
    response.raise_for_status()
    cold = "desc=miss" in response.headers["Server-Timing"]
    return Answer(customer_id, response.json()["forecast"], cold, latency_ms)


def ask_many(customer_ids: list[str]) -> list[Answer]:
    """Send one request after another, over one connection, with each customer's last days."""
    with np.load(Path(__file__).with_name("data") / "footfall.npz") as footfall:
        recent = footfall["counts"][:, -HISTORY_DAYS:].tolist()
        histories = dict(zip(footfall["customer_ids"].tolist(), recent, strict=True))
    with requests.Session() as session:
        session.trust_env = False  # no web proxy stands between this machine and itself
        return [ask(session, customer_id, histories[customer_id]) for customer_id in customer_ids]


if __name__ == "__main__":
    answers = ask_many(random.Random(0).choices(CUSTOMERS, k=REQUESTS))
    for number, answer in enumerate(answers, start=1):
        print(f"Request {number} - {answer.customer_id}: {answer.forecast[:3]}...")
    print(f"\nSent {len(answers)} requests, {sum(answer.cold for answer in answers)} of them cold")
