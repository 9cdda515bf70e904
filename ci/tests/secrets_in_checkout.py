"""A checkout in which somebody has left secrets, for tests of what is uploaded from it."""

import shutil
from pathlib import Path

CONTENT = Path(__file__).parents[2] / "content"
SECRETS = (
    "tenants.key",
    "deploy/tls.key",
    "lab/provider.pem",
    "model_store.env",
    ".env",
)
MODELS = ("models/customer_123/model.safetensors",)


def plant_secrets(folder: Path) -> set[str]:
    """Copy content/ into a folder, put what nobody wants uploaded in, and return its paths."""
    generated = shutil.ignore_patterns("models", "__pycache__", ".ipynb_checkpoints")
    shutil.copytree(CONTENT, folder, ignore=generated, dirs_exist_ok=True)
    for path in SECRETS + MODELS:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("not to be uploaded")
    return {*SECRETS, *MODELS}
