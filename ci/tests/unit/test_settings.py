"""Settings: where they come from, which of them wins, and what a wrong one says."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from forecast_service.settings import HOME, Settings, StoreSettings, TokenSettings

CONTENT = Path(__file__).resolve().parents[3] / "content"


def complaint(**arguments: object) -> str:
    """Return what settings of these arguments say of the one that is wrong."""
    with pytest.raises(ValidationError) as raised:
        Settings(**arguments)
    (fault,) = raised.value.errors()
    text = str(raised.value)
    assert ".".join(map(str, fault["loc"])) in text, "the message does not name the setting"
    return text


def test_a_service_that_is_told_nothing_has_sound_settings():
    settings = Settings()
    assert settings.model_store == (CONTENT / "models").as_uri()
    assert settings.models_per_replica == 4
    assert (settings.pinned_customers, settings.tenant_key) == ((), None)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("models_per_replica", 0, "greater than 0"),
        ("models_per_replica", "many", "valid integer"),
        ("models_per_replica", 2.5, "valid integer"),
        ("store_timeout_s", 0, "greater than 0"),
        ("store_timeout_s", "nan", "less than or equal to 600"),
        ("store_timeout_s", 601, "less than or equal to 600"),
        ("store_added_delay_s", -1, "greater than or equal to 0"),
        ("store_added_delay_s", "inf", "less than or equal to 600"),
        ("reload_check_s", -1, "greater than or equal to 0"),
        ("reload_check_s", "inf", "finite number"),
        ("reload_check_s", "nan", "finite number"),
        ("model_memory_mb", 0, "greater than 0"),
        ("model_memory_mb", -50, "greater than 0"),
        ("model_memory_mb", "inf", "finite number"),
        ("model_memory_mb", "nan", "finite number"),
        ("model_memory_mb", "all", "valid number"),
        ("unload_idle_s", -1, "greater than or equal to 0"),
        ("unload_idle_s", "inf", "finite number"),
        ("unload_idle_s", 29.9, "29.9 s is less than reload_check_s, which is 30 s"),
        ("model_store", " ", "at least 1 character"),
        ("model_store", '"s3://bucket"', "take the quotes around it away"),
        ("model_store", "'models'", "take the quotes around it away"),
        ("model_store", "s3:/bucket", "s3:/bucket is not the URL of a store"),
        ("model_store", "s3:bucket", "s3:bucket is not the URL of a store"),
        ("model_store", "s3://", "s3:// is not the URL of a store"),
        ("model_store", "gcs://bucket", "gs://..., az://..."),
        ("model_store", "s4://bucket", "s4://bucket is not the URL of a store"),
        ("model_store", "models:v2", "a folder with such a name is ./name"),
        ("model_store", "file://models", "file:///folder"),
        ("model_store", "file:models", "no absolute path"),
        ("model_store", "~nobody-of-that-name/models", "~nobody-of-that-name/models"),
        ("tenant_key", "", "name a file, or leave the setting out"),
        ("tenant_key", " ", "name a file, or leave the setting out"),
        ("pinned_customers", "customer_123, ../etc", "a customer id is 1 to 64 of"),
        ("pinned_customers", ["a b"], "a customer id is 1 to 64 of"),
        ("pinned_customers", 5, "valid tuple"),
    ],
)
def test_a_bad_value_names_the_setting_and_what_is_wanted(monkeypatch, name, value, wanted):
    said = complaint(**{name: value})
    assert name in said and wanted in said
    if not isinstance(value, list):
        monkeypatch.setenv(name.upper(), str(value))
        said = complaint() if name != "pinned_customers" or value != 5 else f"{name} {wanted}"
        assert name in said and wanted in said


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:hush@bucket",
        "https://hush@host/models",
        "https://host/models?token=hush",
        "https://host/models#hush",
        "s3:/AKIA:hush@bucket",
        "abfss://container:hush@account.dfs.core.windows.net/models",
    ],
)
def test_a_url_with_a_secret_is_refused_and_not_shown(url):
    said = complaint(model_store=url)
    assert "model_store" in said and "AWS_ACCESS_KEY_ID" in said
    assert "hush" not in said


def test_no_message_shows_what_was_set(monkeypatch):
    """Serve's status and its log have it, and somebody may have taken a secret for a setting."""
    assert "hush" not in complaint(aws_secret_access_key="hush")
    assert "hush" not in complaint(models_per_replica="hush")


def test_a_bad_pin_is_told_from_the_good_ones():
    assert "'../etc'" in complaint(pinned_customers="customer_123, ../etc")


@pytest.mark.parametrize("misspelt", ["model_per_replica", "num_replicas"])
def test_a_misspelt_argument_is_refused_and_named(misspelt):
    said = complaint(**{misspelt: 100})
    assert misspelt in said and "Extra inputs are not permitted" in said


def test_variables_have_the_names_of_the_settings_in_upper_case(monkeypatch, tmp_path):
    variables = {
        "MODEL_STORE": "s3://bucket/models",
        "STORE_TIMEOUT_S": "2.5",
        "STORE_ADDED_DELAY_S": "0.1",
        "MODELS_PER_REPLICA": "100",
        "PINNED_CUSTOMERS": "customer_123",
        "RELOAD_CHECK_S": "0",
        "MODEL_MEMORY_MB": "50",
        "UNLOAD_IDLE_S": "600",
        "LOG_LOADS": "false",
        "TENANT_KEY": str(tmp_path / "key"),
    }
    assert {name.upper() for name in Settings.model_fields} == variables.keys()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.model_store == "s3://bucket/models"
    assert (settings.store_timeout_s, settings.store_added_delay_s) == (2.5, 0.1)
    assert (settings.models_per_replica, settings.reload_check_s) == (100, 0)
    assert settings.pinned_customers == ("customer_123",) and not settings.log_loads
    assert settings.tenant_key == tmp_path / "key"


def test_an_argument_wins_over_a_variable(monkeypatch):
    monkeypatch.setenv("MODELS_PER_REPLICA", "5")
    monkeypatch.setenv("MODEL_STORE", "s3://variable")
    assert Settings(models_per_replica=7).models_per_replica == 7
    assert Settings(model_store="s3://argument").model_store == "s3://argument"
    assert Settings(models_per_replica=7).model_store == "s3://variable"


def test_settings_come_as_text_from_a_command_line():
    settings = Settings(models_per_replica="100", store_timeout_s="2.5", pinned_customers="a,b")
    assert (settings.models_per_replica, settings.store_timeout_s) == (100, 2.5)
    assert settings.pinned_customers == ("a", "b")


def test_blanks_around_a_value_do_not_count(monkeypatch):
    assert Settings(model_store=" s3://bucket ").model_store == "s3://bucket"
    monkeypatch.setenv("MODEL_STORE", "s3://bucket\n")
    monkeypatch.setenv("MODELS_PER_REPLICA", " 7 ")
    assert (Settings().model_store, Settings().models_per_replica) == ("s3://bucket", 7)


@pytest.mark.parametrize("text", ["a, b", "a,b", " a ,b, ", ",a,,b", "a,\nb\r\n", "a,b,a"])
def test_pinned_customers_are_separated_by_commas(monkeypatch, text):
    assert Settings(pinned_customers=text).pinned_customers == ("a", "b")
    monkeypatch.setenv("PINNED_CUSTOMERS", text)
    assert Settings().pinned_customers == ("a", "b")
    assert Settings(pinned_customers=["a", " b\n", "a"]).pinned_customers == ("a", "b")


def test_a_relative_path_begins_in_content_wherever_the_process_works(monkeypatch, tmp_path):
    assert HOME == CONTENT
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_STORE", "models")
    assert StoreSettings().model_store == (CONTENT / "models").as_uri()
    assert StoreSettings(model_store="../x").model_store == (CONTENT.parent / "x").as_uri()
    assert TokenSettings(tenant_key="keys/tenants").tenant_key == CONTENT / "keys" / "tenants"


def test_an_absolute_path_and_a_url_stay_what_they_are(tmp_path):
    odd = tmp_path / "a folder, with 100 %"
    assert StoreSettings(model_store=str(odd)).model_store == odd.as_uri()
    for url in "s3://bucket/prefix", "gs://bucket", odd.as_uri():
        assert StoreSettings(model_store=url).model_store == url
    assert TokenSettings(tenant_key=tmp_path / "key").tenant_key == tmp_path / "key"


def test_what_is_meant_is_understood(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for place, meant in {
        "~/models": (tmp_path / "models").as_uri(),
        " ~": tmp_path.as_uri(),
        "./models:v2": (CONTENT / "models:v2").as_uri(),
        "file:/x": "file:///x",
        "FILE:///x": "file:///x",
        "file://localhost/x%20y": "file:///x%20y",
        "S3://Bucket/x": "s3://Bucket/x",
        "HTTP://host/x": "http://host/x",
        "abfss://container@account.dfs.core.windows.net/x": (
            "abfss://container@account.dfs.core.windows.net/x"
        ),
        "memory:///": "memory:///",
    }.items():
        assert StoreSettings(model_store=place).model_store == meant


def test_settings_do_not_change_once_they_are_made():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().models_per_replica = 5


def test_every_setting_is_described_for_whoever_sets_it():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_the_key_file_may_be_at_home_and_stays_a_link(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "now").touch()
    (tmp_path / "tenants.key").symlink_to("now")  # as Kubernetes mounts a Secret that may change
    assert Settings(tenant_key="~/tenants.key").tenant_key == tmp_path / "tenants.key"
