"""traffic.py and load_test.py against a service whose answers a test decides."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web

from forecast_service.settings import HOME
from lab import load_test
from lab.load_test import main
from lab.traffic import (
    CONNECTION_ERROR,
    HISTORY_DAYS,
    TIMEOUT,
    UNANSWERED,
    Outcomes,
    load_customers,
    send,
    zipf_popularity,
    zipf_trace,
)

Answer = Callable[[web.Request], Awaitable[web.Response]]
STALL_S = 0.4
LOAD_TEST = sys.executable, "-m", "lab.load_test"  # from HOME
ENOUGH_S = 30  # for anything here, on a slow machine: what takes longer hangs
ids, histories = load_customers()


class StubService:
    """Answers on loopback as its `answer` does; notes the customers and bodies that it is sent."""

    def __init__(self):
        self.asked: list[str] = []
        self.bodies: list[bytes] = []
        self.under_way = self.most_under_way = 0
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._started.wait(10), "the stub did not start"

    async def answer(self, request: web.Request) -> web.Response:
        return web.Response(headers={"Server-Timing": "cache;desc=hit;dur=0.1"})

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_post("/", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        await self._stopped.wait()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        self.asked.append(request.headers["serve_multiplexed_model_id"])
        self.bodies.append(await request.read())
        self.under_way += 1
        self.most_under_way = max(self.under_way, self.most_under_way)
        try:
            return await self.answer(request)
        finally:
            self.under_way -= 1

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()


@pytest.fixture
def service() -> Iterator[StubService]:
    service = StubService()
    yield service
    service.stop()


def in_turn(*answers: Answer) -> Answer:
    """Return an `answer` that gives one after the other, the last for ever."""
    rest = list(answers)

    async def answer(request: web.Request) -> web.Response:
        given = rest.pop(0) if len(rest) > 1 else rest[0]
        return await given(request)

    return answer


def status(code: int, **headers: str) -> Answer:
    async def answer(request: web.Request) -> web.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=code, headers=named)

    return answer


async def never(request: web.Request) -> web.Response:
    await asyncio.sleep(2 * ENOUGH_S)
    return web.Response()


async def hang_up(request: web.Request) -> web.Response:
    request.transport.close()
    return web.Response()


def run(url: str, trace: Iterable[int], **options) -> Outcomes:
    """Send without progress; what is not over after ENOUGH_S is interrupted."""
    sending = send(url, ids, histories, trace, progress=False, **options)
    return asyncio.run(asyncio.wait_for(sending, ENOUGH_S))


def outcomes_of(
    latency_s: list[float], status: list[str] | None = None, cache: list[str] | None = None
) -> Outcomes:
    """Return outcomes of requests that all began at once."""
    n = len(latency_s)
    nowhere = np.array([""] * n, dtype=str)
    return Outcomes(
        customer=np.arange(n),
        start_s=np.zeros(n),
        latency_s=np.array(latency_s),
        status=np.array(status or ["200"] * n, dtype=str),
        cache=np.array(cache) if cache else nowhere,
        replica=nowhere,
        interrupted=False,
    )


def exit_code(*arguments: str) -> int | str:
    """Run the command line. Returns 0, or what SystemExit was raised with."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        return stopped.code
    return 0


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_popularity_falls_with_rank_as_zipf_says():
    shares = zipf_popularity(50, skew=1.5)
    assert shares.sum() == pytest.approx(1)
    assert shares[0] / shares[9] == pytest.approx(10**1.5)


def test_a_trace_asks_for_customers_as_often_as_they_are_popular():
    trace = zipf_trace(20, 100_000, skew=1.0, seed=0)
    shares = np.bincount(trace, minlength=20) / len(trace)
    assert shares == pytest.approx(zipf_popularity(20, 1.0), abs=0.01)


def test_the_same_seed_gives_the_same_trace():
    assert (zipf_trace(470, 1000, 1.0, seed=7) == zipf_trace(470, 1000, 1.0, seed=7)).all()
    assert (zipf_trace(470, 1000, 1.0, seed=7) != zipf_trace(470, 1000, 1.0, seed=8)).any()


def test_a_longer_trace_begins_with_the_shorter_one():
    assert (zipf_trace(470, 5000, 1.0, seed=7)[:1000] == zipf_trace(470, 1000, 1.0, seed=7)).all()


def test_percentiles_are_in_milliseconds():
    latencies = outcomes_of([n / 1000 for n in range(101)]).summary()["latency"]["all"]
    expected = {"requests": 101, "p50_ms": 50, "p90_ms": 90, "p99_ms": 99, "max_ms": 100}
    assert latencies == pytest.approx(expected)


def test_cold_and_warm_requests_are_told_apart():
    summary = outcomes_of([0.1, 0.2, 0.3, 9], cache=["hit", "hit", "hit", "miss"]).summary()
    assert summary["hit_rate"] == 0.75
    assert summary["latency"]["warm"]["max_ms"] == pytest.approx(300)
    assert summary["latency"]["cold"]["p50_ms"] == pytest.approx(9000)


def test_without_word_from_the_service_cold_and_warm_are_unknown():
    summary = outcomes_of([0.1, 0.2]).summary()
    assert summary["hit_rate"] is None
    assert summary["latency"]["warm"] is None and summary["latency"]["cold"] is None


def test_quick_errors_do_not_improve_the_percentiles_and_timeouts_worsen_them():
    kinds = ["200", "503", CONNECTION_ERROR, TIMEOUT]
    summary = outcomes_of([0.1, 0.001, 0.001, 10], kinds).summary()
    assert summary["latency"]["all"]["requests"] == 2
    assert summary["latency"]["all"]["p50_ms"] == pytest.approx(5050)
    assert summary["error_share"] == 0.75
    assert summary["errors"] == {"503": 1, CONNECTION_ERROR: 1, TIMEOUT: 1}


def test_a_hit_that_ended_in_an_error_is_no_hit():
    summary = outcomes_of([0.1] * 3, ["200", "500", "500"], ["miss", "hit", "hit"]).summary()
    assert summary["hit_rate"] == 0


def test_rates_are_per_second_until_the_last_answer():
    summary = outcomes_of([1.0, 2.0, 4.0, 4.0], ["200", "200", "200", "503"]).summary()
    assert (summary["seconds"], summary["requests_per_s"]) == (4, 1)
    assert summary["successes_per_s"] == 0.75


def test_requests_without_an_answer_count_neither_as_request_nor_as_error():
    summary = outcomes_of([0.1, 5], ["200", UNANSWERED]).summary()
    assert (summary["requests"], summary["unanswered"], summary["error_share"]) == (1, 1, 0)


def test_any_2xx_is_a_success():
    assert outcomes_of([0.1, 0.1], ["200", "204"]).summary()["error_share"] == 0


def test_nothing_measured_is_reported_as_unknown():
    summary = outcomes_of([]).summary()
    assert summary["requests"] == 0
    assert summary["error_share"] is None and summary["latency"]["all"]["p99_ms"] is None


def test_requests_carry_their_customers_id_and_history(service):
    run(service.url, [2, 0], concurrency=1)
    assert service.asked == [ids[2], ids[0]]
    sent = [json.loads(body)["sequence_data"] for body in service.bodies]
    assert sent == histories[[2, 0]].tolist()


def test_a_caller_may_say_what_a_request_is(service):
    def shout(customer_id: str, history: list[float]) -> dict:
        headers = {"serve_multiplexed_model_id": customer_id.upper()}
        return {"headers": headers, "data": f"{len(history)} days"}

    run(service.url, [2], concurrency=1, request=shout)
    assert (service.asked, service.bodies) == ([ids[2].upper()], [b"28 days"])


@pytest.mark.parametrize("loop", [{"concurrency": 7}, {"rate": 2000}])
def test_outcomes_are_in_the_order_of_the_trace(service, loop):
    async def take_your_time(request: web.Request) -> web.Response:
        await asyncio.sleep(0.001 * (len(service.asked) % 5))
        return web.Response(headers={"X-Replica-Id": request.headers["serve_multiplexed_model_id"]})

    service.answer = take_your_time
    trace = zipf_trace(470, 100, 1.0, seed=0)
    outcomes = run(service.url, trace, **loop)
    assert (outcomes.customer == trace).all()
    assert outcomes.replica.tolist() == [ids[customer] for customer in trace]
    assert (np.diff(outcomes.start_s) >= 0).all()


def test_headers_tell_the_cache_outcome_and_the_replica(service):
    service.answer = in_turn(
        status(200, Server_Timing="cache;desc=miss;dur=20.1", X_Replica_Id="a"),
        status(200, Server_Timing='app;dur=3, cache;dur=1;desc="hit"', X_Replica_Id="b"),
        status(200, Server_Timing="cache;dur=3, db;desc=hit", X_Replica_Id="b"),
        status(200),
    )
    outcomes = run(service.url, [0] * 4, concurrency=1)
    assert outcomes.cache.tolist() == ["miss", "hit", "", ""]
    assert outcomes.summary()["replicas"] == {"b": 2, "a": 1}


def test_every_kind_of_error_is_counted(service):
    elsewhere = status(307, Location="/")
    service.answer = in_turn(
        status(503), status(503), status(404), elsewhere, hang_up, never, status(200)
    )
    summary = run(service.url, [0] * 8, concurrency=1, timeout_s=STALL_S).summary()
    assert summary["errors"] == {"503": 2, "404": 1, "307": 1, CONNECTION_ERROR: 1, TIMEOUT: 1}
    assert (summary["requests"], summary["error_share"]) == (8, 6 / 8)


def test_an_answer_that_breaks_off_is_an_error(service):
    async def break_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"half")
        request.transport.close()
        return response

    service.answer = break_off
    assert run(service.url, [0], concurrency=1).status.tolist() == [CONNECTION_ERROR]


def test_refused_connections_are_counted():
    outcomes = run(f"http://127.0.0.1:{closed_port()}", [0] * 5, concurrency=2)
    assert outcomes.status.tolist() == [CONNECTION_ERROR] * 5


def test_a_closed_loop_has_so_many_requests_under_way(service):
    together = asyncio.Barrier(6)

    async def wait_for_the_others(request: web.Request) -> web.Response:
        await together.wait()
        await asyncio.sleep(0.05)  # time for one too many to come
        return web.Response()

    service.answer = wait_for_the_others
    outcomes = run(service.url, [0] * 12, concurrency=6)
    assert (outcomes.status == "200").all(), "fewer than 6 were under way"
    assert service.most_under_way == 6


def test_an_open_loop_sends_on_schedule_though_no_answer_comes(service):
    everyone, all_asked = 50, asyncio.Event()

    async def wait_for_everyone(request: web.Request) -> web.Response:
        if len(service.asked) == everyone:
            all_asked.set()
        await all_asked.wait()
        return web.Response()

    service.answer = wait_for_everyone
    outcomes = run(service.url, [0] * everyone, rate=500)
    assert (outcomes.status == "200").all()
    assert outcomes.start_s == pytest.approx(np.arange(everyone) / 500)


def test_an_open_loop_counts_the_delay_of_a_queue_that_a_closed_loop_does_not_see(service):
    one_at_a_time, work_s, requests = asyncio.Lock(), 0.01, 50

    async def wait_in_line(request: web.Request) -> web.Response:
        async with one_at_a_time:
            await asyncio.sleep(work_s)
        return web.Response()

    service.answer = wait_in_line
    open_loop = run(service.url, [0] * requests, rate=10 / work_s)
    closed_loop = run(service.url, [0] * requests, concurrency=1)
    assert open_loop.latency_s.max() > requests * work_s / 2
    assert np.median(open_loop.latency_s) > 5 * np.median(closed_loop.latency_s)


def test_latency_counts_from_the_schedule_even_if_the_request_leaves_late(service):
    async def stall_while_sending() -> Outcomes:
        sending = asyncio.create_task(
            send(service.url, ids, histories, [0] * 50, rate=500, progress=False)
        )
        await asyncio.sleep(0)
        time.sleep(STALL_S)  # noqa: ASYNC251 - the client itself hangs
        return await sending

    assert asyncio.run(stall_while_sending()).latency_s.max() > STALL_S / 2


@pytest.mark.parametrize("loop", [{"concurrency": 2}, {"rate": 200}])
def test_a_duration_ends_an_endless_trace_and_the_last_answers_are_awaited(service, loop):
    async def late(request: web.Request) -> web.Response:
        await asyncio.sleep(STALL_S)
        return web.Response()

    service.answer = late
    outcomes = run(service.url, iter(int, 1), duration_s=STALL_S / 2, **loop)
    assert (outcomes.status == "200").all()
    assert outcomes.start_s.max() < STALL_S / 2


def test_customers_share_no_cookies(service):
    """Else one that makes clients stick to a replica would send all of them to it."""

    async def count_cookies(request: web.Request) -> web.Response:
        response = web.Response(headers={"X-Replica-Id": f"{len(request.cookies)} cookies"})
        response.set_cookie("replica", "a")
        return response

    service.answer = count_cookies
    named = service.url.replace("127.0.0.1", "localhost")  # an address gets no cookies anyway
    outcomes = run(named, [0, 1], concurrency=1)
    assert outcomes.summary()["replicas"] == {"0 cookies": 2}


def test_every_customer_needs_a_history():
    sending = send("http://127.0.0.1", ids, histories[1:], [0], concurrency=1)
    with pytest.raises(ValueError):
        asyncio.run(sending)


@pytest.mark.parametrize("loop", [{}, {"concurrency": 1, "rate": 1}])
def test_either_loop_has_to_be_chosen(loop):
    with pytest.raises(ValueError, match="closed loop"):
        run("http://127.0.0.1", [0], **loop)


@pytest.mark.parametrize("loop", [{"concurrency": 4}, {"rate": 1000}])
def test_cancelled_it_returns_what_it_has(service, loop):
    service.answer = in_turn(status(200), status(200), never)

    async def send_and_go_on() -> Outcomes:
        outcomes = await send(service.url, ids, histories, [0] * 6, progress=False, **loop)
        assert not asyncio.current_task().cancelling(), "the caller cannot go on"
        return outcomes

    async def cancel() -> Outcomes:
        sending = asyncio.create_task(send_and_go_on())
        while service.under_way < 4:  # noqa: ASYNC110 - the service is in another thread
            await asyncio.sleep(0.001)
        sending.cancel()
        return await sending

    outcomes = asyncio.run(cancel())
    assert outcomes.interrupted
    assert sorted(outcomes.status)[:2] == ["200", "200"]
    assert set(outcomes.status[2:]) <= {"200", UNANSWERED}
    assert (outcomes.status == UNANSWERED).any()


def test_ids_that_are_not_in_the_data_have_a_history_too():
    named, histories = load_customers([ids[3], *(f"shop_{n}" for n in range(1000))])
    assert len(named) == 1001 and histories.shape == (1001, HISTORY_DAYS)
    assert (histories[0] == load_customers()[1][3]).all()
    assert (histories[475] == load_customers()[1][5]).all()


def test_the_command_line_sends_the_trace_of_its_seed(service, capsys):
    common = "--url", service.url, "--concurrency", 1, "--seed", 3, "--skew", 0.5
    assert exit_code(*common, "--customers", 10, "--requests", 30) == 0
    assert service.asked == [ids[customer] for customer in zipf_trace(10, 30, 0.5, seed=3)]
    service.asked.clear()
    assert exit_code(*common, "--customers", 10, "--duration", 0.2) == 0
    expected = [ids[customer] for customer in zipf_trace(10, len(service.asked), 0.5, seed=3)]
    assert service.asked == expected


def test_a_number_of_requests_is_sent_however_long_it_takes(service, monkeypatch):
    monkeypatch.setattr(load_test, "DURATION_S", 1e-9)
    assert exit_code("--url", service.url, "--requests", 50) == 0
    assert len(service.asked) == 50


def test_customers_come_from_a_file(service, tmp_path):
    file = tmp_path / "customers.txt"
    file.write_text("shop_b\nshop_a\n\n")
    assert exit_code("--url", service.url, "--customers-file", file, "--requests", 40) == 0
    assert set(service.asked) == {"shop_a", "shop_b"}
    assert service.asked.count("shop_b") > service.asked.count("shop_a")


def test_json_has_all_that_is_reported(service, tmp_path, capsys):
    service.answer = in_turn(
        status(503), status(200, Server_Timing="cache;desc=miss", X_Replica_Id="a")
    )
    file = tmp_path / "report.json"
    assert exit_code("--url", service.url, "--requests", 20, "--json", file) == 0
    report = json.loads(file.read_text())
    assert set(report) == {
        *("requests", "unanswered", "interrupted", "seconds", "requests_per_s"),
        *("successes_per_s", "error_share", "errors", "hit_rate", "latency", "replicas"),
    }
    assert set(report["latency"]) == {"all", "warm", "cold"}
    assert set(report["latency"]["cold"]) == {"requests", "p50_ms", "p90_ms", "p99_ms", "max_ms"}
    assert (report["requests"], report["errors"], report["replicas"]) == (20, {"503": 1}, {"a": 19})
    printed = capsys.readouterr().out
    assert all(name in printed for name in set(report) - {"latency"})
    assert f"max_ms {report['latency']['cold']['max_ms']:.4g}" in printed


def test_each_missed_threshold_is_named_with_what_was_measured(service, capsys):
    miss = status(200, Server_Timing="cache;desc=miss")
    hit = status(200, Server_Timing="cache;desc=hit")
    service.answer = in_turn(status(500), miss, hit)
    bounds = {
        "--max-p99-ms": 1e-6,
        "--max-error-share": 0,
        "--min-rate": 1e6,
        "--min-hit-rate": 0.9,
    }
    code = exit_code(
        "--url", service.url, "--requests", 4, "--concurrency", 1, *sum(bounds.items(), ())
    )
    lines = code.splitlines()
    assert len(lines) == len(bounds)
    assert all(option in line for option, line in zip(bounds, lines, strict=True))
    assert "measured 0.25" in lines[1] and "measured 0.66667" in lines[3]


def test_thresholds_that_are_met_exit_with_0(service):
    bounds = {"--max-p99-ms": 1e6, "--max-error-share": 0, "--min-rate": 1.01, "--min-hit-rate": 1}
    assert exit_code("--url", service.url, "--requests", 50, *sum(bounds.items(), ())) == 0


@pytest.mark.parametrize("bound", [("--max-p99-ms", 1e6), ("--min-hit-rate", 0)])
def test_a_threshold_on_what_could_not_be_measured_is_missed(service, bound):
    service.answer = status(500)
    code = exit_code("--url", service.url, "--requests", 5, *bound)
    assert bound[0] in code and "nothing measured" in code


def test_a_missed_threshold_is_exit_code_1(service):
    command = [*LOAD_TEST, "--url", service.url, "--requests", "5"]
    done = subprocess.run(
        [*command, "--min-rate", "1e6"], cwd=HOME, capture_output=True, timeout=ENOUGH_S
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b"missed --min-rate 1e+06: measured")


@pytest.mark.parametrize("loop", [("--concurrency", "4"), ("--rate", "100")])
def test_ctrl_c_reports_what_was_measured(service, tmp_path, loop):
    service.answer = in_turn(*[status(200)] * 10, never)
    file = tmp_path / "report.json"
    command = [*LOAD_TEST, "--url", service.url, "--json", str(file)]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    running = subprocess.Popen([*command, *loop], cwd=HOME, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + ENOUGH_S
        while service.under_way < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        printed, _ = running.communicate(timeout=ENOUGH_S)
    finally:
        running.kill()
    assert running.returncode == 130
    report = json.loads(file.read_text())
    assert report["interrupted"] and report["requests"] == 10 and report["unanswered"] >= 4
    assert "p99_ms" in printed


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ("--concurrency 16 --rate 5", "not allowed with"),
        ("--duration 5 --requests 5", "not allowed with"),
        ("--customers 5 --customers-file x", "not allowed with"),
        ("--concurrency 0", "--concurrency cannot be 0"),
        ("--rate -1", "--rate cannot be -1"),
        ("--rate inf", "--rate cannot be inf"),
        ("--duration nan", "--duration cannot be nan"),
        ("--requests 2.5", "--requests: invalid int"),
        ("--skew -1", "--skew cannot be -1"),
        ("--seed -1", "--seed cannot be -1"),
        ("--timeout 0", "--timeout cannot be 0"),
        ("--max-error-share 5", "--max-error-share cannot be 5"),
        ("--max-p99-ms -1", "--max-p99-ms cannot be -1"),
        ("--customers 471", "470 customers"),
        ("--customers-file missing.txt", "missing.txt"),
        ("--customers-file empty.txt", "empty.txt names no customer"),
        ("--json missing/report.json", "missing/report.json"),
        ("--url localhost:8000", "http://host:port"),
        ("--url http://localhost:port", "http://host:port"),
    ],
)
def test_bad_arguments_are_explained(arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n \n")
    assert exit_code(*arguments.split()) == 2
    assert reason in capsys.readouterr().err


def test_if_nothing_answers_it_says_how_to_start_the_service(capsys):
    url = f"http://127.0.0.1:{closed_port()}"
    assert exit_code("--url", url) == 2
    said = capsys.readouterr().err
    assert f"nothing answers at {url}" in said and "serve run" in said
