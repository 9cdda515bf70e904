"""What can be set, by an argument of the application or by a variable of the environment.

    serve run serve_forecast_production:app models_per_replica=100
    MODELS_PER_REPLICA=100 serve run serve_forecast_production:app

and by `args:` in a config file. An argument wins over a variable, which is the setting's name in
upper case. A misspelt argument is refused; a misspelt variable is one that nobody reads. The number
of replicas, their CPUs, their limits and their log level are settings of Ray Serve's own.

Settings are read where the application is built, and travel to the replicas as an argument: no
secret is among them. A store's credentials (AWS_ACCESS_KEY_ID and its kin, AWS_ENDPOINT_URL,
AWS_ALLOW_HTTP=true for plain http) are read in the replica.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from forecast_service.customer_ids import check_customer_id
from forecast_service.errors import InvalidCustomerIdError

HOME = Path(__file__).resolve().parents[1]  # where relative paths begin, whoever asks from wherever


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, validate_default=True, str_strip_whitespace=True
    )


class StoreSettings(_Settings):
    """Where models lie, and how patiently they are read."""

    model_store: str = Field(
        "models",
        min_length=1,
        description="A folder, or a URL: s3://bucket/prefix, gs://..., az://...",
    )
    store_timeout_s: float = Field(
        10, gt=0, le=600, description="Seconds after which a read gives up, retries included."
    )
    store_added_delay_s: float = Field(
        0, ge=0, le=600, description="Simulated delay before each read, for a far store."
    )

    @field_validator("model_store")
    @classmethod
    def make_absolute(cls, url: str) -> str:
        """Turn a path into a URL: a replica may run where the working directory is another."""
        return url if "://" in url else (HOME / url).resolve().as_uri()


def check_store_variables(kind: str) -> None:
    """Refuse variables that a store of a kind, as obstore.parse_scheme() has it, cannot use.

    Raises:
        ValueError: names the variable, without its value.
    """


class TokenSettings(_Settings):
    """Whether tenants are kept apart."""

    tenant_key: Path | None = Field(
        None, description="A file with the keys that tokens are checked with: turns tokens on."
    )

    @field_validator("tenant_key", mode="before")
    @classmethod
    def locate(cls, path: object) -> object:
        """Make a path absolute. An empty one is a mistake: it does not turn tokens off."""
        path = path.strip() if isinstance(path, str) else path
        if path == "":
            raise ValueError("name a file, or leave the setting out to turn tokens off")
        return HOME / path if isinstance(path, str | Path) else path


class Settings(StoreSettings, TokenSettings):
    """What can be set of the production service."""

    models_per_replica: PositiveInt = Field(
        4, description="Models that a replica keeps in memory, beside the pinned ones."
    )
    pinned_customers: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Ids, separated by commas, whose models every replica loads before its first "
        "request, and keeps.",
    )
    reload_check_s: float = Field(
        30,
        ge=0,
        allow_inf_nan=False,
        description="Seconds for which a model that was replaced or deleted in the store may still "
        "be served, plus one load; 0: for ever.",
    )

    @field_validator("pinned_customers", mode="before")
    @classmethod
    def split(cls, value: object) -> object:
        """Take `a, b` for two ids."""
        if isinstance(value, str):
            return [name for part in value.split(",") if (name := part.strip())]
        return value

    @field_validator("pinned_customers")
    @classmethod
    def check_ids(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse what cannot be a customer's id."""
        for name in names:
            try:
                check_customer_id(name)
            except InvalidCustomerIdError as error:
                raise ValueError(f"{name!r}: {error}") from None
        return names
