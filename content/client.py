"""Ask the service for one customer's forecast, of a week that is over, and show what happened."""

import os
from pathlib import Path

import numpy as np
import requests

SERVICE = os.environ.get("SERVICE_URL", "http://127.0.0.1:8000")
CUSTOMER = "customer_123"
MONDAY = np.datetime64("2025-10-13")  # after the days that the models were trained on
HISTORY_DAYS = 28

with np.load(Path(__file__).with_name("data") / "footfall.npz") as footfall:
    counts = footfall["counts"][footfall["customer_ids"].tolist().index(CUSTOMER)]
    today = footfall["dates"].tolist().index(MONDAY.item())

with requests.Session() as session:
    session.trust_env = False  # no web proxy stands between this machine and itself
    response = session.post(
        SERVICE,
        headers={"serve_multiplexed_model_id": CUSTOMER},
        json={"sequence_data": counts[today - HISTORY_DAYS : today].tolist()},
        timeout=10,
    )
response.raise_for_status()
answer = response.json()
for part, values in answer.items():
    print(f"{part:14}", values)
print(f"{'what happened':14}", counts[today : today + len(answer["forecast"])].tolist())
