"""The image and rayservice.yaml: the image has what it runs, and KubeRay's schema knows each key.

What Ray Serve makes of them is asked in ci/tests/live/test_serve_config.py.
"""

import ast
import json
import math
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path

import image
import jsonschema
import kubernetes_validate
import nbformat
import pytest
import yaml
from dotenv import dotenv_values
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from secrets_in_checkout import MODELS, SECRETS

from forecast_service.settings import Settings
from template_lock import REQUIREMENTS, pins

CONTENT = REQUIREMENTS.parent / "content"
DEPLOY = CONTENT / "deploy"
KUBERNETES_VERSION = "1.37"
HEAD, WORKER = "ray-head", "ray-worker"
QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kMGTPE]|[KMGTPE]i)?")  # its schema takes any text for one
IMAGE_HAS = {"ray"}  # and what Ray needs, which is pinned all the same if we import it

text = (DEPLOY / "rayservice.yaml").read_text()
service = yaml.safe_load(text)["spec"]
cluster = service["rayClusterConfig"]
(workers,) = cluster["workerGroupSpecs"]
config = yaml.safe_load(service["serveConfigV2"])
(app,) = config["applications"]
(deployment,) = app["deployments"]
scaling = deployment["autoscaling_config"]
dockerfile = image.DOCKERFILE.read_text()
requirements = (DEPLOY / "requirements.txt").read_text()


def copied() -> dict[str, str]:
    """Return what the Dockerfile copies, by its path in content/: where it lies in the image."""
    return {path: target for paths, target in image.copied() for path in paths}


def modules_in_image() -> dict[str, Path]:
    """Return the Python files of ours that the image has, by the name they are imported by."""
    modules = {}
    for path in map(CONTENT.joinpath, copied()):
        files = path.rglob("*.py") if path.is_dir() else [path] if path.suffix == ".py" else []
        for file in files:
            name = ".".join(file.relative_to(CONTENT).with_suffix("").parts)
            modules[name.removesuffix(".__init__")] = file
    return modules


def imports(file: Path) -> set[str]:
    """Return the names of all modules that a file imports."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}


def served() -> set[str]:
    """Return the names of all modules that the image's entries, and its proxies, import at last.

    What else is in the folder, as the command that keeps forecasts good, is run elsewhere.
    """
    ours, guard = modules_in_image(), image.environment()[image.GUARD].partition(":")[0]
    names, pending = set(), {guard, *(name for name in ours if "." not in name)}
    while pending:
        names |= pending
        pending = set().union(*(imports(ours[name]) for name in pending if name in ours)) - names
    return names


def foreign_packages() -> set[str]:
    """Return the distributions that the image's services import, all but Ray."""
    tops = {name.partition(".")[0] for name in served()} - sys.stdlib_module_names
    tops -= {name.partition(".")[0] for name in modules_in_image()}
    found = packages_distributions()
    return {canonicalize_name(found[top][0]) for top in tops} - IMAGE_HAS


def brought_along(package: str) -> set[str]:
    """Return what a requirement, extras included, depends on by itself."""
    line = re.search(rf"^{package}(?=[=\[]).*$", requirements, re.M | re.I)[0]
    extras = Requirement(line).extras or {""}
    wanted = map(Requirement, requires(package) or ())
    return {
        canonicalize_name(w.name)
        for w in wanted
        if w.marker is None or any(w.marker.evaluate({"extra": extra}) for extra in extras)
    }


def test_every_file_that_the_image_copies_is_there():
    assert [path for path in copied() if not (CONTENT / path).exists()] == []


def test_the_image_has_every_module_of_ours_that_its_modules_import():
    modules = modules_in_image()
    entries = {"serve_forecast_multiplex", "serve_forecast_production"}
    assert {"forecast_service", *entries} <= modules.keys()
    ours = {path.stem for path in CONTENT.glob("*.py")} | {
        path.name for path in CONTENT.iterdir() if any(path.glob("*.py"))
    }
    missing = {
        f"{name} imports {wanted}"
        for name, file in modules.items()
        for wanted in imports(file)
        if wanted.partition(".")[0] in ours and wanted not in modules
    }
    assert missing == set()


def test_the_requirements_are_what_the_images_modules_import_beyond_rays_image():
    imported = foreign_packages()
    pinned = {canonicalize_name(name) for name in pins(requirements)}
    brought = set().union(*map(brought_along, pinned))
    assert imported - pinned - brought == set(), "add a pin to deploy/requirements.txt"
    assert pinned - imported == set(), "nothing in the image imports it"


def test_services_do_without_what_keeps_forecasts_good():
    assert {"forecast_service.service", "forecast_service.store"} <= served()
    assert served().isdisjoint({"forecast_service.upkeep", "forecast_service.long_table", "polars"})


def test_the_requirements_pin_what_the_tutorials_requirements_pin():
    lines = re.findall(r"^(?!#)\S.*$", requirements, re.M)
    tutorials = {line.split("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines()}
    assert [line for line in lines if line.strip() not in tutorials] == []
    assert len(pins(requirements)) == len(lines), "a package has two pins, or a line has none"


@pytest.mark.parametrize("file", ["service.yaml", "deploy/service.yaml"])
def test_no_deployment_file_has_requirements_of_its_own(file):
    assert yaml.safe_load((CONTENT / file).read_text())["requirements"] == "deploy/requirements.txt"


def test_the_image_installs_the_requirements_and_no_others():
    target = copied()["deploy/requirements.txt"]
    assert re.findall(r"pip install (.+)$", dockerfile, re.M) == [f"--no-cache-dir -r {target}"]
    assert not pins(dockerfile)


def test_the_image_has_rays_version_and_its_proxies_are_guarded():
    (tag,) = re.findall(r"^FROM rayproject/ray:(\S+)-py31[12]$", dockerfile, re.MULTILINE)
    assert tag == version("ray") == cluster["rayVersion"]
    environment = image.environment()
    assert copied()["serve_forecast_production.py"] == f"{environment['PYTHONPATH']}/"
    assert copied()["forecast_service/"] == f"{environment['PYTHONPATH']}/forecast_service/"
    guard = environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    assert guard == "forecast_service.proxy_guard:middlewares"


def strict(schema: dict) -> dict:
    """Return the schema, which refuses what Kubernetes would drop: keys that it does not know."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(part) for key, part in schema.items()}
    if isinstance(closed.get("properties"), dict) and closed.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


FAST_INGRESS = ("env",)
TOKENS = "tenant_key", "securityContext", "volumes", "volumeMounts"


def switch_on(keys: tuple[str, ...]) -> str:
    """Take the comment signs off what some keys have, as the file says."""
    lines, inside = [], False
    for line in text.splitlines():
        code = line.lstrip()
        found = code.startswith(tuple(f"# {key}:" for key in keys))
        inside = found or (inside and code.startswith("#  "))
        lines.append(line.replace("# ", "", 1) if inside else line)
    return "\n".join(lines)


VARIANTS = {
    "default": text,
    "fast": switch_on(FAST_INGRESS),
    "tokens": switch_on(TOKENS),
    "fast, tokens": switch_on(FAST_INGRESS + TOKENS),
}


@pytest.fixture(params=VARIANTS)
def variant(request) -> str:
    """rayservice.yaml, with each ingress, and with and without tokens."""
    return VARIANTS[request.param]


@pytest.fixture(scope="module")
def kuberay() -> jsonschema.Draft7Validator:
    """The custom resource RayService, version v1, of KubeRay (Apache-2.0), commit feeaf72fa."""
    schema = json.loads(Path(__file__).with_name("rayservice_v1.schema.json").read_text())
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft7Validator(strict(schema))


def faults(validator: jsonschema.Draft7Validator, document: str) -> list[str]:
    errors = validator.iter_errors(yaml.safe_load(document))
    return [f"{error.json_path}: {error.message}" for error in errors]


def test_kuberays_schema_knows_every_key(kuberay, variant):
    assert faults(kuberay, variant) == []


@pytest.mark.parametrize(
    "key", ["serveConfigV2", "authOptions", "mode", "maxReplicas", "envFrom", "failureThreshold"]
)
def test_a_misspelt_key_is_found(kuberay, key):
    misspelt = text.replace(f"{key}:", f"{key}s:", 1)
    assert any(f"{key}s" in fault for fault in faults(kuberay, misspelt))


def pod_templates(text: str = text) -> dict[str, dict]:
    """Return the pods' templates, by the name of their container."""
    cluster = yaml.safe_load(text)["spec"]["rayClusterConfig"]
    groups = cluster["headGroupSpec"], *cluster["workerGroupSpecs"]
    templates = [group["template"] for group in groups]
    return {template["spec"]["containers"][0]["name"]: template for template in templates}


def container(name: str, text: str = text) -> dict:
    """Return a pod's one container."""
    (only,) = pod_templates(text)[name]["spec"]["containers"]
    return only


@pytest.mark.parametrize("name", [HEAD, WORKER])
def test_kubernetes_own_schema_reads_the_pod(name, variant):
    template = pod_templates(variant)[name]
    document = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
    kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("name", [HEAD, WORKER])
def test_without_its_comment_signs_the_fast_ingress_is_that_of_fast_ingress_env(name):
    assert "env" not in container(name)
    env = container(name, switch_on(FAST_INGRESS))["env"]
    settings = {setting["name"]: setting["value"] for setting in env}
    assert settings == dotenv_values(DEPLOY / "fast_ingress.env")


def applications() -> list[tuple[str, dict]]:
    """Return what each file deploys."""
    files = {"rayservice": config}
    for name in "serve_config", "service":
        files[name] = yaml.safe_load((DEPLOY / f"{name}.yaml").read_text())
    return [(name, only) for name, file in files.items() for only in file["applications"]]


@pytest.mark.parametrize(
    "application", [app for _, app in applications()], ids=[name for name, _ in applications()]
)
def test_every_argument_is_a_setting_of_the_production_service(application):
    assert application["import_path"] == "serve_forecast_production:app"
    settings = Settings(**application["args"])
    assert settings.models_per_replica == 100
    assert "runtime_env" not in application, "the settings are arguments"


def test_serve_listens_where_the_probe_and_the_kubernetes_service_ask():
    http = config["http_options"]
    assert http["host"] == "0.0.0.0"
    assert {"name": "serve", "containerPort": http["port"]} in container(HEAD)["ports"]
    assert container(WORKER)["readinessProbe"]["httpGet"]["port"] == http["port"]


def test_serve_config_listens_on_loopback_unless_it_is_told_otherwise():
    serve_config = yaml.safe_load((DEPLOY / "serve_config.yaml").read_text())
    assert serve_config["http_options"]["host"] == "127.0.0.1"


def test_only_a_worker_that_can_serve_gets_requests():
    assert service["excludeHeadPodFromServeSvc"]
    ready, alive = (container(WORKER)[f"{kind}Probe"] for kind in ("readiness", "liveness"))
    assert ready["httpGet"]["path"] == "/-/healthz"
    assert ready["failureThreshold"] == 1, "a worker that cannot serve goes on getting requests"
    assert alive["httpGet"] == container(HEAD)["livenessProbe"]["httpGet"]


def test_every_workers_pod_has_a_replica_and_so_a_proxy():
    """A pod without one is never Ready: github.com/ray-project/kuberay/issues/1828."""
    assert deployment["max_replicas_per_node"] == 1, "a pod has two replicas, and another none"
    assert workers["minReplicas"] == workers["replicas"] == scaling["min_replicas"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "replicas on the head"
    assert cluster["enableInTreeAutoscaling"], "nothing adds pods"


def test_the_most_replicas_have_pods_and_those_of_an_update_beside_them():
    surge = math.ceil(scaling["max_replicas"] * deployment["max_surge_percent"] / 100)
    assert surge, "an update stops replicas before it has others"
    assert workers["maxReplicas"] == scaling["max_replicas"] + surge
    cpus = int(container(WORKER)["resources"]["limits"]["cpu"])
    assert cpus > deployment["ray_actor_options"]["num_cpus"], "no CPU is left for the proxy"


def test_the_tenants_key_is_a_secret_that_is_mounted_where_the_service_reads_it():
    (application,) = yaml.safe_load(yaml.safe_load(VARIANTS["tokens"])["spec"]["serveConfigV2"])[
        "applications"
    ]
    key = Settings(**application["args"]).tenant_key
    pod = pod_templates(VARIANTS["tokens"])[WORKER]["spec"]
    (volume,), (mount,) = pod["volumes"], container(WORKER, VARIANTS["tokens"])["volumeMounts"]
    assert mount["name"] == volume["name"] and mount["readOnly"]
    assert "subPath" not in mount, "the file would not follow the Secret"
    assert key.parent == Path(mount["mountPath"])
    assert volume["secret"]["defaultMode"] == 0o440 and pod["securityContext"]["fsGroup"]
    created = re.search(r"create secret generic (\S+) --from-file=([\w.]+)=\$HOME/", text)
    assert created.groups() == (volume["secret"]["secretName"], key.name)
    assert "tenant_key" not in app["args"]


@pytest.mark.parametrize("name", [HEAD, WORKER])
def test_a_pod_is_promised_all_that_it_may_use(name):
    resources = container(name)["resources"]
    assert resources["limits"].keys() == {"cpu", "memory"}
    assert resources["requests"] == resources["limits"]
    assert all(QUANTITY.fullmatch(amount) for amount in resources["limits"].values())


def test_autoscaling_keeps_a_warm_floor_and_is_slower_down_than_up():
    assert deployment["num_replicas"] == "auto"
    assert 2 <= scaling["min_replicas"] < scaling["max_replicas"]
    target, threshold = scaling["target_ongoing_requests"], deployment["max_ongoing_requests"]
    assert target < threshold <= 2 * target, "new replicas never come, or stand idle"
    assert scaling["downscale_delay_s"] > scaling["upscale_delay_s"]


@pytest.mark.parametrize("name", [HEAD, WORKER])
def test_a_pod_runs_the_dockerfiles_image_and_is_given_the_stores_credentials(name):
    assert [container(name)["image"]] == re.findall(r"docker build -t (\S+)", dockerfile)
    assert container(name)["envFrom"] == [{"secretRef": {"name": "model-store"}}]


def git(*command: str) -> list[str]:
    done = subprocess.run(
        ["git", *command], cwd=CONTENT.parent, capture_output=True, text=True, timeout=60
    )
    return done.stdout.splitlines()


def test_git_takes_no_secret_and_no_model_and_every_file_that_it_has():
    unwanted = [f"content/{path}" for path in SECRETS + MODELS] + [*SECRETS]
    assert git("check-ignore", "--no-index", *unwanted) == unwanted
    assert git("ls-files", "--cached", "--ignored", "--exclude-standard") == []


def texts() -> list[str]:
    """Return what a reader may copy commands from: cells, pages, docstrings, comments."""
    pages = CONTENT.parent / "README.md", *CONTENT.rglob("*.md")
    code = *CONTENT.rglob("*.py"), *DEPLOY.glob("*.yaml")
    cells = [
        cell["source"]
        for notebook in CONTENT.rglob("*.ipynb")
        for cell in nbformat.read(notebook, as_version=4).cells
    ]
    return [path.read_text() for path in (*pages, *code)] + cells


NEW_SECRET = re.compile(r"(?:openssl rand|token_hex|token_urlsafe)[^>\n]*> *([^\s);]+)")


def test_a_text_writes_a_new_secret_for_its_owner_alone_and_out_of_the_checkout():
    written = [
        (found[1].strip("'\""), text[: found.start()].splitlines()[-3:])
        for text in texts()
        for found in NEW_SECRET.finditer(text)
    ]
    assert len(written) >= 2, "no text makes a secret any more: this test looks for nothing"
    for file, before in written:
        assert "umask 077" in "\n".join(before), f"others can read {file}"
        assert file.startswith(("~/", "/", "$1/")), f"{file} is uploaded with the code"
