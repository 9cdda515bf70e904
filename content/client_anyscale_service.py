"""Ask the service on Anyscale for one customer's forecast.

export ANYSCALE_SERVICE_URL=https://... ANYSCALE_SERVICE_TOKEN=...
python client_anyscale_service.py
"""

import os
import sys
from pathlib import Path

import numpy as np
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

CUSTOMER = "customer_123"
HISTORY_DAYS = 28
TIMEOUT_S = 10
# While the model store or a replica is away, the service says when to try again: do as it says.
RETRY = Retry(total=5, status_forcelist=[503], allowed_methods=["POST"], raise_on_status=False)


def from_environment(name: str) -> str:
    """Return an environment variable, or exit with what to do about it."""
    return os.environ.get(name) or sys.exit(
        f"{name} is not set: `anyscale service deploy` prints the service's URL and token"
    )


def add_token(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Log in with the token, whatever ~/.netrc has for the service's host."""
    request.headers["Authorization"] = f"Bearer {token}"
    return request


url, token = map(from_environment, ("ANYSCALE_SERVICE_URL", "ANYSCALE_SERVICE_TOKEN"))
with np.load(Path(__file__).with_name("data") / "footfall.npz") as footfall:
    row = footfall["customer_ids"].tolist().index(CUSTOMER)
    history = footfall["counts"][row, -HISTORY_DAYS:].tolist()

with requests.Session() as session:
    session.mount(url, HTTPAdapter(max_retries=RETRY))
    response = session.post(
        url,
        auth=add_token,
        headers={"serve_multiplexed_model_id": CUSTOMER},
        json={"sequence_data": history},
        timeout=TIMEOUT_S,
    )
if response.status_code == 401:
    sys.exit("the service refuses the token: is ANYSCALE_SERVICE_TOKEN that of this service?")
response.raise_for_status()
print(response.json())
