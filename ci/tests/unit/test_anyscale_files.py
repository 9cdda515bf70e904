"""The files for Anyscale, read by Anyscale's own code, and what it uploads."""

import re
from importlib.metadata import version
from io import BytesIO
from zipfile import ZipFile

import pytest
import yaml
from anyscale.commands.service_commands import service_cli
from anyscale.service.models import ServiceConfig
from anyscale.utils.runtime_env import parse_requirements_file, zip_local_dir
from secrets_in_checkout import plant_secrets

from template_lock import REQUIREMENTS, pins

ROOT = REQUIREMENTS.parent
CONTENT = ROOT / "content"
FILES = {
    "service.yaml": ("forecast-multiplex", "serve_forecast_multiplex:app"),
    "deploy/service.yaml": ("forecast-production", "serve_forecast_production:app"),
}


@pytest.mark.parametrize("file", FILES)
def test_anyscales_own_code_reads_the_service_file(file):
    config = ServiceConfig.from_yaml(str(CONTENT / file))
    assert (config.name, config.applications[0]["import_path"]) == FILES[file]
    assert config.compute_config.auto_select_worker_config
    assert config.working_dir == ".", "what is uploaded is content/, from which it is deployed"


@pytest.mark.parametrize("file", FILES)
def test_models_lie_where_every_node_sees_them(file):
    service = yaml.safe_load((CONTENT / file).read_text())
    (application,) = service["applications"]
    stores = (
        service.get("env_vars", {}).get("MODEL_STORE"),
        application.get("args", {}).get("model_store"),
    )
    (store,) = filter(None, stores)
    assert store.startswith("s3://")


@pytest.mark.parametrize("file", FILES)
def test_the_image_has_the_tutorials_ray_and_the_requirements_are_a_file_that_anyscale_reads(file):
    service = yaml.safe_load((CONTENT / file).read_text())
    assert f":{version('ray')}-" in service["image_uri"]
    path = CONTENT / service["requirements"]  # from the folder that the command runs in
    assert pins("\n".join(parse_requirements_file(str(path)))) == pins(path.read_text())


def commands() -> list[str]:
    """Return the commands for Anyscale that a text of ours has."""
    texts = ROOT / "README.md", *CONTENT.glob("chapters/*.md"), *(CONTENT / file for file in FILES)
    found = [
        command
        for text in texts
        for command in re.findall(r"^(?:#\s+)?(anyscale service .*)$", text.read_text(), re.M)
    ]
    assert len(found) >= len(FILES)
    return found


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_anyscale_command_in_a_text_is_one_of_the_installed_cli(command):
    name, *words = command.split()[2:]
    known = {option for given in service_cli.commands[name].params for option in given.opts}
    assert {word for word in words if word.startswith("-")} <= known


def test_every_file_that_a_command_deploys_is_there():
    files = {file for command in commands() for file in re.findall(r" -f (\S+)", command)}
    assert files >= FILES.keys()
    assert [file for file in files if not (CONTENT / file).exists()] == []


def test_what_is_uploaded_is_the_code_without_models_and_secrets(tmp_path):
    planted = plant_secrets(tmp_path)
    with zip_local_dir(str(tmp_path)) as (_, data, _):
        names = ZipFile(BytesIO(data)).namelist()
    uploaded = {name.partition("/")[2] for name in names}  # below a folder of the zip's own
    assert {"serve_forecast_production.py", "deploy/requirements.txt"} <= uploaded
    assert {"forecast_service/tokens.py", "deploy/fast_ingress.env"} <= uploaded
    assert not uploaded & planted
