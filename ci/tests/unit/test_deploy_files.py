"""rayservice.yaml and its image: read by the code and the schemas of Ray and of Kubernetes."""

import importlib
import re

import kubernetes_validate
import pytest
import ray
import requests
import yaml
from conftest import CONTENT, SERVICE
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

import serve_forecast_multiplex
from fast_ingress import SETTINGS

KUBERNETES_VERSION = "1.37"
HEAD, WORKER = "ray-head", "ray-worker"
QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kMGTPE]|[KMGTPE]i)?")  # its schema takes any text for one

text = (CONTENT / "rayservice.yaml").read_text()
service = yaml.safe_load(text)["spec"]
cluster = service["rayClusterConfig"]
(workers,) = cluster["workerGroupSpecs"]
config = yaml.safe_load(service["serveConfigV2"])
(app,) = config["applications"]
(deployment,) = app["deployments"]
scaling = deployment["autoscaling_config"]
serve_config = yaml.safe_load((CONTENT / "serve_config.yaml").read_text())
image = (CONTENT / "Dockerfile").read_text()


def switch_fast_ingress_on() -> str:
    """Take the comment signs off the lines about the fast ingress, as the file says."""
    lines, inside = [], False
    for line in text.splitlines():
        code = line.lstrip()
        inside = code.startswith("# env: ") or (inside and code.startswith("# "))
        lines.append(line.replace("# ", "", 1) if inside else line)
    return "\n".join(lines)


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


def test_rays_own_schema_reads_the_serve_config_and_ignores_none_of_it():
    assert ServeDeploySchema(**config).model_dump(exclude_unset=True) == config
    assert AutoscalingConfig(**scaling).model_dump(exclude_unset=True) == scaling


def test_it_deploys_the_application_that_serve_config_yaml_deploys():
    (other,) = serve_config["applications"]
    for name in "name", "route_prefix", "import_path":
        assert app[name] == other[name]
    assert deployment["name"] == other["deployments"][0]["name"]


@pytest.mark.parametrize("app", [app, *serve_config["applications"]], ids=["rayservice", "config"])
def test_every_setting_is_one_that_the_service_reads(app):
    documented = re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", serve_forecast_multiplex.__doc__)
    env_vars = app["runtime_env"]["env_vars"]
    assert env_vars.keys() <= set(documented)
    assert all(isinstance(value, str) for value in env_vars.values()), "Ray takes only text"


def test_serve_listens_where_the_probe_and_the_kubernetes_service_ask():
    http = config["http_options"]
    assert http["host"] == "0.0.0.0"
    assert {"name": "serve", "containerPort": http["port"]} in container(HEAD)["ports"]
    assert container(WORKER)["readinessProbe"]["httpGet"]["port"] == http["port"]


@pytest.mark.parametrize("text", [text, switch_fast_ingress_on()], ids=["default", "fast"])
@pytest.mark.parametrize("name", [HEAD, WORKER])
def test_kubernetes_own_schema_reads_the_pod(name, text):
    document = {"apiVersion": "v1", "kind": "PodTemplate", "template": pod_templates(text)[name]}
    kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("name", [HEAD, WORKER])
def test_without_its_comment_signs_the_fast_ingress_is_that_of_fast_ingress_py(name):
    assert "env" not in container(name)
    env = container(name, switch_fast_ingress_on())["env"]
    assert {setting["name"]: setting["value"] for setting in env} == SETTINGS


@pytest.mark.parametrize("probe", ["livenessProbe", "readinessProbe"])
@pytest.mark.parametrize("name", [HEAD, WORKER])
def test_a_probe_asks_what_a_live_node_answers(live_store, name, probe):
    asked = container(name)[probe]["httpGet"]
    (node,) = ray.nodes()
    agent = f"http://{node['NodeManagerAddress']}:{asked['port']}"
    url = SERVICE if SERVICE.endswith(f":{asked['port']}") else agent
    assert requests.get(url + asked["path"], timeout=10).status_code == 200


def test_only_a_worker_that_can_serve_gets_requests():
    assert service["excludeHeadPodFromServeSvc"]
    ready, alive = (container(WORKER)[f"{kind}Probe"] for kind in ("readiness", "liveness"))
    assert ready["httpGet"]["path"] == "/-/healthz"
    assert ready["failureThreshold"] == 1, "a worker that cannot serve goes on getting requests"
    assert alive["httpGet"] == container(HEAD)["livenessProbe"]["httpGet"]


def test_pods_have_room_for_the_fewest_and_for_the_most_replicas():
    cpus = int(container(WORKER)["resources"]["limits"]["cpu"])
    per_pod = cpus // deployment["ray_actor_options"]["num_cpus"]
    assert per_pod * workers["minReplicas"] >= scaling["min_replicas"]
    assert per_pod * workers["maxReplicas"] == scaling["max_replicas"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "replicas on the head"
    assert cluster["enableInTreeAutoscaling"], "nothing adds pods"


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
    assert [container(name)["image"]] == re.findall(r"docker build -t (\S+)", image)
    assert container(name)["envFrom"] == [{"secretRef": {"name": "model-store"}}]


def test_the_image_has_the_tutorials_ray_and_packages():
    (version,) = re.findall(r"^FROM rayproject/ray:(\S+)-py31[12]$", image, re.MULTILINE)
    assert version == ray.__version__ == cluster["rayVersion"]
    anyscale = yaml.safe_load((CONTENT / "service.yaml").read_text())
    assert re.findall(r"\S+==[^\s\\]+", image) == anyscale["requirements"]


def test_the_image_has_the_service_and_the_guard_of_its_proxies():
    environment = dict(re.findall(r"^ENV (\w+)=(\S+)$", image, re.MULTILINE))
    assert f" *.py {environment['PYTHONPATH']}/\n" in image
    module, _, attribute = environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].partition(":")
    assert getattr(importlib.import_module(module), attribute)()
