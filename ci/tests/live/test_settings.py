"""Settings from the command line and the environment reach the production service, or are refused.

Config files have tests of their own.
"""

import os
import subprocess

import pytest
from live_service import APP_NAMES, CONTENT, ON_BOTH, SERVICE, LogWatch, is_hit
from ray import serve

from faulty_store import SECRET
from lab.serving import wait_until

MODELS = 7
MISSING = "customer_9999"
RUN = ["serve", "run", "serve_forecast_production:app", "--non-blocking", "--name", "built"]
RUN += ["--route-prefix", "/built"]


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Run `serve run` as a user does."""
    env = os.environ | variables
    return subprocess.run(
        [*RUN, *arguments], cwd=CONTENT, env=env, capture_output=True, text=True, timeout=120
    )


def test_an_argument_of_the_command_line_takes_effect(ask, fleet):
    done = run(f"models_per_replica={MODELS}", MODELS_PER_REPLICA="2")  # the argument wins
    assert done.returncode == 0, done.stderr
    try:
        customers = list(fleet)[: MODELS + 1]
        for _ in range(2):
            answers = [ask(name, url=f"{SERVICE}/built") for name in customers[:MODELS]]
        assert all(map(is_hit, answers)), "fewer models are kept than the argument says"
        for _ in range(2):
            answers = [ask(name, url=f"{SERVICE}/built") for name in customers]
        assert not any(map(is_hit, answers)), "more models are kept than the argument says"
    finally:
        serve.delete("built")


@pytest.mark.parametrize(
    ("argument", "variables", "said"),
    [
        ("model_per_replica=7", {}, ["model_per_replica", "not permitted"]),
        ("models_per_replica=many", {}, ["models_per_replica", "valid integer"]),
        ("reload_check_s=30", {"MODELS_PER_REPLICA": "0"}, ["models_per_replica", "greater than"]),
        ("model_memory_mb=-50", {}, ["model_memory_mb", "greater than 0"]),
        ("unload_idle_s=20", {}, ["unload_idle_s", "20 s is less than reload_check_s", "30 s"]),
    ],
    ids=["misspelt argument", "bad argument", "bad variable", "bad budget", "bad idle time"],
)
def test_serve_run_refuses_a_setting_and_names_it_and_what_is_wanted(
    live_store, argument, variables, said
):
    done = run(argument, **variables)
    assert done.returncode != 0
    assert all(part in done.stderr for part in said), done.stderr
    assert "built" not in serve.status().applications


@ON_BOTH
def test_what_the_store_refuses_with_is_in_the_log_and_not_in_the_answer(
    ask, store, url, session_dir
):
    log = LogWatch(session_dir)
    store.refusal = 403, "InvalidObjectState", "Not valid for the storage class"
    answer = ask("customer_0005")
    assert answer.status_code == 503 and "Retry-After" in answer.headers
    assert answer.json()["detail"] == "the model store refuses the request"
    said = f"InvalidObjectState: {store.refusal[2]}. Restore the object"
    replicas = f"replica_{APP_NAMES[url]}_*.log"
    wait_until(lambda: said in log.new(replicas), "the log has the store's own code")
    assert SECRET not in log.new(replicas)
    store.refusal = None
    assert ask("customer_0005").status_code == 200


def test_a_store_that_refuses_as_a_replica_starts_is_told_and_waited_for(
    ask, store, launch_production, session_dir
):
    log = LogWatch(session_dir)
    store.may_list = False
    launch_production("denied")
    try:
        there = f"{SERVICE}/denied"
        assert ask("customer_0006", url=there).status_code == 200, "what there is, is denied"
        assert [ask(MISSING, url=there).status_code for _ in range(2)] == [503, 503]
        told = log.new("replica_denied_*.log")
        assert told.count("s3:ListBucket on the bucket") == 1, told
        store.may_list = True
        assert ask(MISSING, url=there).status_code == 404, "it takes a restart to find it well"
    finally:
        serve.delete("denied")


def test_a_bucket_that_does_not_exist_stops_the_start_and_is_named(store, launch_production):
    store.refusal = 404, "NoSuchBucket", "The bucket does not exist"
    keys = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"
    variables = dict.fromkeys(keys, "hush") | {"AWS_ENDPOINT_URL": store.url}
    environment = {"runtime_env": {"env_vars": variables | {"AWS_ALLOW_HTTP": "true"}}}
    try:
        with pytest.raises(RuntimeError) as failed:
            launch_production(
                "lost", {"ray_actor_options": environment}, model_store="s3://no-such-bucket/x"
            )
    finally:
        serve.delete("lost")
    said = "FileNotFoundError: the model store s3://no-such-bucket/x does not exist"
    assert said in str(failed.value), failed.value
    assert "hush" not in str(failed.value), "the message tells a secret"


@pytest.mark.parametrize(
    ("options", "settings", "said"),
    [
        ({}, {}, {"Cold load"}),
        ({}, {"log_loads": False}, set()),
        ({"logging_config": {"log_level": "INFO"}}, {}, {"Cold load", "request"}),
    ],
    ids=["by default", "without loads", "with requests"],
)
def test_the_log_has_loads_by_default_and_requests_if_wanted(
    ask, store, launch_production, session_dir, options, settings, said
):
    """A line of Ray Serve's for a request says its method, route, status and time."""
    log = LogWatch(session_dir)
    launch_production("logged", options, **settings)
    try:
        first, broken = "customer_0005", "customer_0006"
        assert ask(first, url=f"{SERVICE}/logged").status_code == 200
        store.artifacts[broken] = b"no artifact"
        assert ask(broken, url=f"{SERVICE}/logged").status_code == 502
        replicas = "replica_logged_*.log"
        wait_until(lambda: f"Could not load {broken}" in log.new(replicas), "a problem is logged")
        lines = {"Cold load": f"Cold load of {first}", "request": "POST /logged/ 200"}
        assert {kind for kind, line in lines.items() if line in log.new(replicas)} == said
    finally:
        serve.delete("logged")
