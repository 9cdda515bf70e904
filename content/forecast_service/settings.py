"""What can be set, by an argument of the application or by a variable of the environment.

    serve run serve_forecast_production:app models_per_replica=100
    MODELS_PER_REPLICA=100 serve run serve_forecast_production:app

and by `args:` in a config file. An argument wins over a variable, which is the setting's name in
upper case. A misspelt argument is refused; a misspelt variable is one that nobody reads. The number
of replicas, their CPUs, their limits and their log level are settings of Ray Serve's own.

Settings are read where the application is built, and travel to the replicas as an argument: no
secret is among them. A store's credentials (AWS_ACCESS_KEY_ID and its kin, AWS_ENDPOINT_URL,
AWS_ALLOW_HTTP=true for plain http) are read in the replica, and refused there, by name, if they
cannot be used.
"""

import os
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.exceptions import BaseError
from pydantic import (
    AnyHttpUrl,
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from forecast_service.customer_ids import check_customer_id
from forecast_service.errors import InvalidCustomerIdError

HOME = Path(__file__).resolve().parents[1]  # where relative paths begin, whoever asks from wherever
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+")
VARIABLES = {"s3": "AWS_", "gcs": "GOOGLE_", "azure": "AZURE_"}  # that obstore reads
ADDRESSES = (  # those of them that it builds its requests' URLs from
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_METADATA_ENDPOINT",
    "AZURE_AUTHORITY_HOST",
    "GOOGLE_BASE_URL",
)


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        str_strip_whitespace=True,
        hide_input_in_errors=True,  # which are logged: one may have put a secret there
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
    def make_absolute(cls, place: str) -> str:
        """Turn a path into a URL: a replica may run where the working directory is another."""
        if is_quoted(place):
            raise ValueError("take the quotes around it away")
        scheme, colon, rest = place.partition(":")
        if not (colon and SCHEME.fullmatch(scheme)):
            return locate(place).resolve().as_uri()
        parts = urlsplit(place)
        user, at, _ = (parts.netloc or place).rpartition("@")
        of_azure = scheme.lower().startswith("abfs") and ":" not in user  # container@account
        if parts.query or parts.fragment or (at and not of_azure):
            raise ValueError(
                "a URL with a user, a password, a '?' or a '#' in it: a store's credentials belong "
                "in variables such as AWS_ACCESS_KEY_ID, and not in a setting, which others can see"
            )
        try:
            kind = obstore.parse_scheme(place)
        except (BaseError, ValueError):
            raise ValueError(
                f"{place} is not the URL of a store, as are s3://bucket/prefix, gs://..., az://... "
                "and file:///folder; a folder with such a name is ./name"
            ) from None
        if kind == "local":
            if not parts.path.startswith("/"):
                raise ValueError(f"{place} has no absolute path, as file:///folder has")
            return locate(url2pathname(parts.path)).resolve().as_uri()
        return f"{scheme.lower()}:{rest}"


def locate(path: str | Path) -> Path:
    """Return an absolute path. A relative one begins in HOME, unless it begins with '~'.

    Links stay links: the file that a Kubernetes Secret is mounted as leads elsewhere by and by.

    Raises:
        ValueError: if '~' is nobody's home.
    """
    try:
        return HOME / Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None


def is_quoted(value: str) -> bool:
    """Return whether a value came with the quotes of a file that takes them literally."""
    return len(value) > 1 and value[0] in "\"'" and value[-1] == value[0]


def check_store_variables(kind: str) -> None:
    """Refuse what obstore would end a request with a panic for, or send as it stands.

    `kind` is a store's, by obstore.parse_scheme(). A key of Google's that is JSON may have line
    breaks.

    Raises:
        ValueError: names the variable. Its value may be a secret, and is not shown.
    """
    for name, value in os.environ.items():
        fault = None
        if kind not in VARIABLES or not name.startswith(VARIABLES[kind]):
            continue
        if kind == "gcs" and value.lstrip().startswith("{"):
            continue
        if value != value.strip():
            fault = "has blanks or a line break around its value: take them away"
        elif is_quoted(value):
            fault = "has quotes around its value: take them away"
        elif not value.isprintable():
            fault = "has a line break or another invisible character in its value"
        elif name in ADDRESSES and not is_address(value):
            fault = "is not an address such as https://host:9000, with no user, '?' or '#' in it"
        if fault:
            raise ValueError(f"the environment's {name} {fault}")


def is_address(text: str) -> bool:
    """Return whether a text is an http(s) URL, of no more than host, port and path."""
    try:
        url = TypeAdapter(AnyHttpUrl).validate_python(text)
    except ValidationError:
        return False
    return not (url.username or url.password or url.query or url.fragment)


class TokenSettings(_Settings):
    """Whether tenants are kept apart."""

    tenant_key: Path | None = Field(
        None, description="A file with the keys that tokens are checked with: turns tokens on."
    )

    @field_validator("tenant_key", mode="before")
    @classmethod
    def make_absolute_path(cls, path: object) -> object:
        """Make a path absolute. An empty one is a mistake: it does not turn tokens off."""
        path = path.strip() if isinstance(path, str) else path
        if path == "":
            raise ValueError("name a file, or leave the setting out to turn tokens off")
        return locate(path) if isinstance(path, str | Path) else path


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
    model_memory_mb: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Megabytes (1 MB = 1 000 000 bytes) that the models in a replica's memory have "
        "together, by their own size_bytes, the pinned ones included. The least recently used is "
        "unloaded to make room; models_per_replica still counts. None: no budget.",
    )
    unload_idle_s: float = Field(
        0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds without a request after which a model is unloaded, unless it is "
        "pinned; 0: never. No less than reload_check_s.",
    )

    log_loads: bool = Field(
        True,
        description="A line in the replica's log for each model that is loaded, reloaded or "
        "unloaded, whatever Ray Serve's log_level is.",
    )

    @field_validator("unload_idle_s")
    @classmethod
    def outlast_check(cls, idle_s: float, info: ValidationInfo) -> float:
        """Refuse a time within which a model would be unloaded before it is first checked."""
        check_s = info.data.get("reload_check_s", 0)  # without it, that one is refused already
        if 0 < idle_s < check_s:
            raise ValueError(
                f"{idle_s:g} s is less than reload_check_s, which is {check_s:g} s: set it to that "
                "or more, or to 0"
            )
        return idle_s

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
        """Refuse what cannot be a customer's id, and take one that is named twice once."""
        for name in names:
            try:
                check_customer_id(name)
            except InvalidCustomerIdError as error:
                raise ValueError(f"{name!r}: {error}") from None
        return tuple(dict.fromkeys(names))
