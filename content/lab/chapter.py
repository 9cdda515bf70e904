"""What the chapters begin with: a trained fleet, and a way to ask for it."""

import shutil
import tempfile

import requests

import train_models
from forecast_service.settings import StoreSettings
from forecast_service.store import ModelStore
from lab.this_machine import SERVICE, ask_directly

NAMED = tuple(f"customer_{suffix}" for suffix in ("123", "456", "789", "abc", "def", "hij"))


async def train_if_missing() -> None:
    """Train the fleet on the Ray that runs, unless the store has a model for each customer."""
    wanted = train_models.load_footfall()[0]
    if not set(wanted) <= set(await ModelStore(create=True).list()):
        train_models.main()


def copy_of_store() -> ModelStore:
    """Return a store in a new temporary folder, with the models of the local one, to be changed.

    Raises FileNotFoundError if the store is not a folder.
    """
    folder = tempfile.mkdtemp(prefix="models-")
    shutil.copytree(ModelStore().folder, folder, dirs_exist_ok=True)
    return ModelStore(StoreSettings(model_store=folder))


def ask(
    customer_id: str, history: list[float], url: str = SERVICE, **headers: str
) -> requests.Response:
    """Ask the service for a customer's forecast."""
    headers = {"serve_multiplexed_model_id": customer_id, **headers}
    return ask_directly("post", url, headers=headers, json={"sequence_data": history}, timeout=30)
