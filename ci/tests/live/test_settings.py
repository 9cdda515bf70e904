"""Settings from the command line and the environment reach the production service, or are refused.

Config files have tests of their own.
"""

import os
import subprocess

import pytest
from live_service import CONTENT, SERVICE, is_hit
from ray import serve

MODELS = 7
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
    ],
    ids=["a misspelt argument", "a bad argument", "a bad variable"],
)
def test_serve_run_refuses_a_setting_and_names_it_and_what_is_wanted(
    live_store, argument, variables, said
):
    done = run(argument, **variables)
    assert done.returncode != 0
    assert all(part in done.stderr for part in said), done.stderr
    assert "built" not in serve.status().applications
