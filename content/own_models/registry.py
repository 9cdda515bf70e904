"""MLflow's model registry in front of the store: the champion there is what the service serves.

    MLFLOW_TRACKING_URI=http://127.0.0.1:5000 python -m own_models.registry sync

Copies each customer's champion into the store (MODEL_STORE), from where running replicas take it
within their reload_check_s. `compare` in place of `sync` writes nothing. Both name each difference
between registry and store, and exit with 1 if there is one that they leave.

A registered model is a customer's: PREFIX and the id. Its versions have an artifact each, as
own_models/artifact.py makes it; the alias ALIAS says which one to serve.
"""

import argparse
import asyncio
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import requests

try:
    from mlflow import MlflowClient
except ModuleNotFoundError:
    raise ModuleNotFoundError("pip install -r chapters/requirements_mlflow.txt first") from None
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from forecast_service.errors import CorruptModelError, UnknownCustomerError
from forecast_service.store import ModelStore
from own_models.artifact import from_bytes

ALIAS = "champion"
PREFIX = "forecast-"  # a registry has models of others, too
EXPERIMENT = "forecasts"
FILE = "model.safetensors"
SHA256 = "sha256"  # a version's tag: the artifact's checksum
AT_ONCE = 50  # reads of the store
CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # by default, it tries for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class RegistryError(Exception):
    """The registry does not answer, or refuses."""


class Difference(NamedTuple):
    """Where registry and store disagree about a customer, and what was done about it."""

    customer_id: str
    what: str
    mended: bool = False

    def __str__(self) -> str:
        return f"{'mended: ' if self.mended else ''}{self.customer_id}: {self.what}"


def connect(uri: str | None = None) -> MlflowClient:
    """Return a client of a registry, by default that of MLFLOW_TRACKING_URI.

    Raises:
        RegistryError: if there is no address. It is not asked yet.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise RegistryError("set MLFLOW_TRACKING_URI to the registry's address")
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def register(client: MlflowClient, customer_id: str, artifact: bytes) -> str:
    """Add a version to a customer's registered model, which is made if need be; return its number.

    Raises:
        CorruptModelError: if it is no model of this customer. RegistryError.
    """
    from_bytes(artifact, customer_id)
    name = PREFIX + customer_id
    with _speaking_of(client), tempfile.TemporaryDirectory() as folder:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        experiment_id = (
            experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
        )
        run = client.create_run(experiment_id, run_name=customer_id)
        Path(folder, FILE).write_bytes(artifact)
        client.log_artifact(run.info.run_id, str(Path(folder, FILE)))
        client.set_terminated(run.info.run_id)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        checksum = hashlib.sha256(artifact).hexdigest()
        version = client.create_model_version(
            name,
            source=f"{run.info.artifact_uri}/{FILE}",
            run_id=run.info.run_id,
            tags={SHA256: checksum},
            await_creation_for=None,
        )
    return version.version


def promote(client: MlflowClient, customer_id: str, version: str) -> None:
    """Make a version the champion: sync() brings it into the store. Raises RegistryError."""
    with _speaking_of(client):
        client.set_registered_model_alias(PREFIX + customer_id, ALIAS, version)


async def compare(client: MlflowClient, store: ModelStore) -> list[Difference]:
    """Return where the store is not what the registry says, and write nothing.

    Raises:
        RegistryError, StoreUnavailableError: if one of the two does not answer.
    """
    return await _compare(client, store, mend=False)


async def sync(client: MlflowClient, store: ModelStore) -> list[Difference]:
    """Copy each champion that the store lacks, and return all differences that were found.

    Left as it is, and named: a customer whose model only the store has; one without a champion; an
    artifact that is no model of its customer.

    Raises:
        RegistryError, StoreUnavailableError: if one of the two does not answer.
    """
    return await _compare(client, store, mend=True)


async def _compare(client: MlflowClient, store: ModelStore, mend: bool) -> list[Difference]:
    champions = await asyncio.to_thread(_champions, client)
    stored = set(await store.list())
    room = asyncio.Semaphore(AT_ONCE)

    async def look(customer_id: str) -> Difference | None:
        async with room:
            return await _look(client, store, customer_id, champions[customer_id], mend)

    found = await asyncio.gather(*map(look, sorted(champions)))
    unknown = [
        Difference(customer_id, "the store has a model, the registry does not know it")
        for customer_id in sorted(stored - champions.keys())
    ]
    return [difference for difference in found if difference] + unknown


async def _look(
    client: MlflowClient,
    store: ModelStore,
    customer_id: str,
    champion: ModelVersion | None,
    mend: bool,
) -> Difference | None:
    """Return how a customer's model in the store differs from the champion."""
    if champion is None:
        return Difference(customer_id, f"no version is the {ALIAS} in the registry")
    try:
        held = hashlib.sha256((await store.read(customer_id)).data).hexdigest()
    except UnknownCustomerError:
        held = None
    if held and held == champion.tags.get(SHA256):
        return None
    try:
        data = await asyncio.to_thread(_download, client, champion)
        from_bytes(data, customer_id)
    except CorruptModelError as error:
        return Difference(customer_id, f"version {champion.version} in the registry: {error}")
    checksum = hashlib.sha256(data).hexdigest()
    if checksum == held:
        return None
    if checksum != champion.tags.get(SHA256, checksum):
        what = f"version {champion.version} in the registry is not what was registered"
        return Difference(customer_id, what)
    if mend:
        await store.write(customer_id, data)
    has = "another model" if held else "none"
    what = f"version {champion.version} is the {ALIAS}, the store has {has}"
    return Difference(customer_id, what, mended=mend)


def _champions(client: MlflowClient) -> dict[str, ModelVersion | None]:
    """Return the champion of each customer whom the registry knows."""
    ours = f"name LIKE '{PREFIX}%'"
    with _speaking_of(client):
        models = list(_pages(client.search_registered_models, ours))
        versions = {
            (version.name, str(version.version)): version
            for version in _pages(client.search_model_versions, ours)
        }
    return {
        model.name.removeprefix(PREFIX): versions.get((model.name, str(model.aliases.get(ALIAS))))
        for model in models
    }


def _pages(search, what: str) -> Iterator:
    """Iterate over all that one of MLflow's searches finds."""
    token = None
    while True:
        page = search(filter_string=what, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _download(client: MlflowClient, version: ModelVersion) -> bytes:
    """Return a version's artifact."""
    with _speaking_of(client), tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(version.run_id, FILE, folder)).read_bytes()


@contextmanager
def _speaking_of(client: MlflowClient) -> Iterator[None]:
    """Turn what MLflow's client raises into RegistryError."""
    try:
        yield
    except (MlflowException, requests.RequestException) as error:
        reason = str(error).partition("\n")[0]
        if "Max retries exceeded" in reason or isinstance(error, requests.ConnectionError):
            reason = "it does not answer; the service goes on with the models of its store"
        raise RegistryError(f"the registry {client.tracking_uri}: {reason}") from error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("do", choices=("compare", "sync"))
    do = {"compare": compare, "sync": sync}[parser.parse_args().do]
    try:
        found = asyncio.run(do(connect(), ModelStore(create=True)))
    except RegistryError as error:
        sys.exit(str(error))
    left = [difference for difference in found if not difference.mended]
    print(*found, f"{len(found)} differences, {len(left)} left", sep="\n")
    sys.exit(bool(left))


if __name__ == "__main__":
    main()
