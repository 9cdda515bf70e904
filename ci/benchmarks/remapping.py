"""Count the customers that move to another replica when replicas are added or lost.

    python ci/benchmarks/remapping.py [--short]

Through the fast ingress, with the consistent hash of deploy/fast_ingress.env and with HAProxy's
plain one. Writes content/data/remapping.json. With --short it scales up only, leaves the plain hash
out, and writes nothing. Exits 1 if the consistent hash moves more than MAX_MOVED_EXCESS over what
is inevitable.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy as np

CONTENT = Path(__file__).parents[2] / "content"
sys.path.insert(0, str(CONTENT))
RESULTS = CONTENT / "data" / "remapping.json"
SERVICE = "http://127.0.0.1:8000"
CUSTOMERS = 400
BALANCE = "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"
HASHES = "consistent", "plain"
STEPS = (4, 5), (5, 4), (4, 8)  # replicas before and after
MAX_MOVED_EXCESS = 0.1
DEADLINE_S = 120


def inevitable(before: int, after: int) -> float:
    """Return the share of customers that has to move for all replicas to have an even share."""
    return abs(after - before) / max(before, after)


def count_moves(steps: list[tuple[int, int]]) -> list[float]:
    """Return the share of customers that move at each step, on a service of its own."""
    import ray
    import yaml

    context = ray.init("local", num_cpus=4, logging_level="error", log_to_driver=False)
    from ray import serve

    import train_models
    from lab.serving import deploy, wait_until
    from lab.traffic import load_customers, send

    train_models.main()
    os.environ["RAY_ADDRESS"] = context.address_info["gcs_address"]  # for `serve deploy`
    os.environ["RAY_DASHBOARD_ADDRESS"] = f"http://{context.dashboard_url}"
    serve.start(http_options={"host": "127.0.0.1"})
    config = yaml.safe_load((CONTENT / "deploy" / "serve_config.yaml").read_text())
    (deployment,) = config["applications"][0]["deployments"]
    deployment["ray_actor_options"] = {"num_cpus": 0.4}
    customers, histories = load_customers()

    def scale(replicas: int) -> None:
        deployment["num_replicas"] = replicas
        deploy(config, replicas)

    def ask_all() -> np.ndarray:
        trace = range(CUSTOMERS)
        sending = send(SERVICE, customers, histories, trace, concurrency=8, progress=False)
        answers = asyncio.run(sending)
        assert (answers.status == "200").all(), answers.summary()
        return answers.replica

    def home_replicas(replicas: int) -> np.ndarray:
        """Return who answers each customer, once HAProxy has heard of all replicas."""
        homes = ask_all()

        def settled() -> bool:
            nonlocal homes
            before, homes = homes, ask_all()
            return len(set(homes)) == replicas and (homes == before).all()

        wait_until(settled, "each customer is answered by the same replica again", DEADLINE_S)
        return homes

    moved = []
    for before, after in steps:
        scale(before)
        homes = home_replicas(before)
        scale(after)
        moved.append(float((homes != home_replicas(after)).mean()))
    serve.shutdown()
    ray.shutdown()
    return moved


def run(hash_type: str, steps: list[tuple[int, int]], models: str) -> list[float]:
    """Count in a process of its own: Ray reads its ingress from the environment, at its start."""
    from lab.local_ray import fast_ingress_settings

    settings = {
        "PYTHONPATH": str(CONTENT),  # for Ray's workers
        "MODEL_STORE": models,
        **fast_ingress_settings(),
    }
    if hash_type == "plain":
        settings[BALANCE] = "hdr(serve_multiplexed_model_id)"
    command = [sys.executable, __file__, "--count", json.dumps(steps)]
    done = subprocess.run(
        command, env=os.environ | settings, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="one step, for CI")
    parser.add_argument("--count", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count:
        print(json.dumps(count_moves(json.loads(options.count))))
        return

    steps = STEPS[: 1 if options.short else None]
    with tempfile.TemporaryDirectory() as models:
        hashes = HASHES[: 1 if options.short else None]
        moved = {hash_type: run(hash_type, steps, models) for hash_type in hashes}
    print(f"{'replicas':12}{'inevitable':>12}" + "".join(f"{name:>12}" for name in moved))
    for step, *shares in zip(steps, *moved.values(), strict=True):
        numbers = "".join(f"{share:12.1%}" for share in (inevitable(*step), *shares))
        print(f"{step[0]} to {step[1]:<7}{numbers}")
    if not options.short:
        measured = {"date": str(date.today()), "customers": CUSTOMERS, "steps": steps}
        RESULTS.write_text(json.dumps(measured | {"moved": moved}, indent=2) + "\n")
    for step, share in zip(steps, moved["consistent"], strict=True):
        if share > inevitable(*step) + MAX_MOVED_EXCESS:
            sys.exit(f"{step}: the consistent hash moved {share:.1%}")


if __name__ == "__main__":
    main()
