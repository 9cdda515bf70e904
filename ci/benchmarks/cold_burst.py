"""Compare load-before-the-lock with the documented pattern: cold bursts, and warm requests.

    python ci/benchmarks/cold_burst.py [--short]

Prints ratios from one run, through Ray Serve's default ingress and through its fast one (HAProxy).
The store is a local folder with a labelled delay before each read. Exits 1 if a target is missed.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONTENT = Path(__file__).parents[2] / "content"
sys.path.insert(0, str(CONTENT))

import fast_ingress  # noqa: E402

SERVICE = "http://127.0.0.1:8000"
STORE_DELAY_S = 0.1
BURST = 32  # distinct cold customers at once
MAX_BURST_RATIO = 1.5  # times one cold load, through the fast ingress
MAX_WARM_RATIO = 1.1  # times the documented pattern's warm request, through the default ingress
MEASURED = "one cold", "cold burst", "warm burst", "one warm"
PATTERNS = {"load before the lock": "/", "documented pattern": "/stock"}
INGRESSES = {"default": {}, "fast": fast_ingress.SETTINGS}


async def measure(short: bool) -> dict[str, dict[str, float]]:
    """Return median seconds by pattern: one request and a burst, cold and warm."""
    import aiohttp

    from client_multiple_requests import load_histories

    histories = load_histories()
    singles, bursts, warm_requests = (3, 2, 300) if short else (9, 5, 1000)
    async with aiohttp.ClientSession() as session:

        async def ask(path: str, customer_id: str) -> float:
            headers = {"serve_multiplexed_model_id": customer_id}
            start = time.perf_counter()
            async with session.post(
                SERVICE + path, headers=headers, json={"sequence_data": histories[customer_id]}
            ) as answer:
                assert answer.status == 200, await answer.text()
                await answer.read()
            return time.perf_counter() - start

        async def burst(path: str, customers: list[str]) -> float:
            start = time.perf_counter()
            await asyncio.gather(*(ask(path, customer_id) for customer_id in customers))
            return time.perf_counter() - start

        medians = {}
        for pattern, path in PATTERNS.items():
            unasked = iter(histories)
            first = next(unasked)
            await burst(path, [first] * BURST)  # opens the connections
            single = [await ask(path, next(unasked)) for _ in range(singles)]
            cold, warm = [], []
            for _ in range(bursts):
                customers = [next(unasked) for _ in range(BURST)]
                cold.append(await burst(path, customers))
                warm.append(await burst(path, customers))
            samples = zip(MEASURED, (single, cold, warm), strict=False)
            medians[pattern] = {name: statistics.median(sample) for name, sample in samples}
        alternating = [
            [await ask(path, first) for path in PATTERNS.values()] for _ in range(warm_requests)
        ]
        for pattern, sample in zip(PATTERNS, zip(*alternating, strict=True), strict=True):
            medians[pattern]["one warm"] = statistics.median(sample)
    return medians


def serve_and_measure(short: bool) -> None:
    """Deploy both patterns, one replica each, and print what measure() returns as JSON."""
    os.environ["PYTHONPATH"] = str(CONTENT)  # for Ray's workers
    import ray
    from ray import serve

    ray.init(log_to_driver=False)
    import train_models

    train_models.main()
    import serve_forecast_multiplex
    import serve_stock_multiplex

    serve.start(http_options={"host": "127.0.0.1"})
    for module, path in zip(
        (serve_forecast_multiplex, serve_stock_multiplex), PATTERNS.values(), strict=True
    ):
        serve.run(module.app, name=module.__name__, route_prefix=path)
    medians = asyncio.run(measure(short))
    serve.shutdown()
    ray.shutdown()
    print(json.dumps(medians))


def run(ingress: str, models: str, short: bool) -> dict[str, dict[str, float]]:
    """Measure in a process of its own: Ray reads its ingress from the environment, at its start."""
    settings = {
        "MODEL_STORE": models,
        "STORE_ADDED_DELAY_S": str(STORE_DELAY_S),
        "MODELS_PER_REPLICA": "400",
    }
    command = [sys.executable, __file__, "--measure"] + ["--short"] * short
    done = subprocess.run(
        command,
        env=os.environ | settings | INGRESSES[ingress],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="fewer repetitions, for CI")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return serve_and_measure(options.short)

    with tempfile.TemporaryDirectory() as models:
        measured = {ingress: run(ingress, models, options.short) for ingress in INGRESSES}
    print(f"{BURST} distinct cold customers at once; each read of the store is delayed by")
    print(f"{STORE_DELAY_S * 1000:.0f} ms (a labelled delay). Medians, in milliseconds:")
    columns = "".join(f"{name:>11}" for name in (*MEASURED, "burst/one"))
    print(f"{'ingress':8} {'pattern':21}{columns}")
    for ingress, patterns in measured.items():
        for pattern, seconds in patterns.items():
            cells = [f"{seconds[name] * 1000:11.1f}" for name in MEASURED]
            cells.append(f"{seconds['cold burst'] / seconds['one cold']:11.2f}")
            print(f"{ingress:8} {pattern:21}" + "".join(cells))

    ours, documented = (
        {name: run[pattern] for name, run in measured.items()} for pattern in PATTERNS
    )
    burst_ratio = ours["fast"]["cold burst"] / ours["fast"]["one cold"]
    warm_ratio = ours["default"]["one warm"] / documented["default"]["one warm"]
    print(f"cold burst, fast ingress: {burst_ratio:.2f} x one cold load, target {MAX_BURST_RATIO}")
    print(
        f"warm request, default ingress: {warm_ratio:.2f} x the documented pattern's, "
        f"target {MAX_WARM_RATIO}"
    )
    sys.exit(burst_ratio > MAX_BURST_RATIO or warm_ratio > MAX_WARM_RATIO)


if __name__ == "__main__":
    main()
