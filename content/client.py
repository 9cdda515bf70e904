"""Ask the service for one customer's forecast."""

from pathlib import Path

import numpy as np
import requests

SERVICE = "http://localhost:8000"
CUSTOMER = "customer_123"
HISTORY_DAYS = 28

with np.load(Path(__file__).with_name("data") / "footfall.npz") as footfall:
    row = footfall["customer_ids"].tolist().index(CUSTOMER)
    history = footfall["counts"][row, -HISTORY_DAYS:].tolist()

response = requests.post(
    SERVICE,
    headers={"serve_multiplexed_model_id": CUSTOMER},
    json={"sequence_data": history},
    timeout=10,
)
response.raise_for_status()
print(response.json())
