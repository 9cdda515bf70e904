"""Clients that know the right forecast, and a record of what became of their requests."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import aiohttp
from ray.cluster_utils import Cluster

from lab.traffic import CONNECTION_ERROR, TIMEOUT, Outcomes

WORKERS = 3  # nodes beside the head

RIGHT, WRONG = "right", "wrong forecast"
ATTEMPTS = 2  # a forecast changes nothing in the service, so a client may ask for it again
RETRY_PAUSE_S = 0.5
TIMEOUT_S = 30.0  # the cores that answer also start what replaces a lost node


@dataclass(frozen=True)
class Customer:
    """A customer, the history to send, and the body that the model in the store answers with."""

    customer_id: str
    history: list[int]
    expected: bytes


@dataclass
class Answer:
    """What became of one request: an outcome per attempt, and who answered the last one."""

    attempts: list[str] = field(default_factory=list)
    replica: str = ""


@dataclass(frozen=True)
class Drill:
    """What was seen before, while and after a node was away. Placements count replicas by node."""

    proxies: set[str]  # nodes that have one, before
    placed: dict[str, Counter]  # by phase
    swept: dict[str, list[Answer]]  # by phase: each customer once
    load: Outcomes  # in an open loop, nothing is retried
    clients: list[Answer]  # in a closed loop, each retries once
    noticed_s: float  # until Ray Serve gave the lost replica up
    returned_s: float  # until it had all replicas again, from when a node was added


def worker_ids(cluster: Cluster) -> set[str]:
    """Return the nodes beside the head."""
    return {node.node_id for node in cluster.worker_nodes}


async def ask(session: aiohttp.ClientSession, url: str, customer: Customer) -> Answer:
    """Ask for a forecast, and once more after a 5xx or a lost connection."""
    answer = Answer()
    headers = {"serve_multiplexed_model_id": customer.customer_id}
    body = json.dumps({"sequence_data": customer.history})
    for attempt in range(ATTEMPTS):
        await asyncio.sleep(RETRY_PAUSE_S * attempt)
        try:
            async with session.post(url, headers=headers, data=body) as response:
                forecast = await response.read()
        except TimeoutError:
            outcome = TIMEOUT
        except aiohttp.ClientError:
            outcome = CONNECTION_ERROR
        else:
            outcome = str(response.status)
            answer.replica = response.headers.get("X-Replica-Id", "")
            if response.status == 200:
                outcome = RIGHT if forecast == customer.expected else WRONG
        answer.attempts.append(outcome)
        if outcome not in (TIMEOUT, CONNECTION_ERROR) and not outcome.startswith("5"):
            break
    return answer


async def ask_all(
    url: str, customers: Iterable[Customer], concurrency: int, answers: list[Answer]
) -> None:
    """Ask for one customer after the other, `concurrency` at a time, and append to `answers`."""
    customers = iter(customers)

    async def ask_in_turn() -> None:
        for customer in customers:
            answers.append(await ask(session, url, customer))

    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(ask_in_turn())


def report(drill: Drill) -> list[str]:
    """Return the outcomes by kind, as lines of a table."""
    columns = {
        "load": Counter(drill.load.status.tolist()),
        "clients, first attempt": Counter(answer.attempts[0] for answer in drill.clients),
        "clients, last attempt": Counter(answer.attempts[-1] for answer in drill.clients),
    }
    kinds = sorted(set().union(*columns.values()))
    lines = [f"{'outcome':18}" + "".join(f"{name:>24}" for name in columns)]
    for kind in kinds:
        lines.append(f"{kind:18}" + "".join(f"{column[kind]:24}" for column in columns.values()))
    for phase, placed in drill.placed.items():
        lines.append(f"replicas by node {phase}: {sorted(placed.values())}")
    lines.append(f"the loss was noticed after {drill.noticed_s:.1f} s")
    lines.append(f"all replicas ran {drill.returned_s:.1f} s after a node was added")
    return lines
