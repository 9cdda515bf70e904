"""The client of the service on Anyscale, with a stand-in endpoint that has TLS and a token."""

import asyncio
import os
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp import web
from live_service import CONTENT, SERVICE

TOKEN = "the-right-token"


class TlsProxy:
    """Anyscale's endpoint in small: TLS, a bearer token, and the live service behind it."""

    def __init__(self, folder: Path):
        authority = trustme.CA()
        self.certificate = folder / "ca.pem"
        authority.cert_pem.write_to_path(self.certificate)
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost").configure_cert(self._tls)
        self.unavailable = 0  # answers of 503 still to give
        self.statuses = []
        self._ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        assert self._ready.wait(10), "the proxy did not start"

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_post("/", self._forward)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self.url = f"https://localhost:{runner.addresses[0][1]}"
        self._ready.set()
        await asyncio.Event().wait()

    async def _forward(self, request: web.Request) -> web.Response:
        answer = await self._answer(request)
        self.statuses.append(answer.status)
        return answer

    async def _answer(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.Response(status=401)
        if self.unavailable:
            self.unavailable -= 1
            return web.Response(status=503, headers={"Retry-After": "1"})
        name = "serve_multiplexed_model_id"
        headers = {name: request.headers[name], "Content-Type": "application/json"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(SERVICE, data=await request.read(), headers=headers) as answer,
        ):
            return web.Response(status=answer.status, body=await answer.read())


@pytest.fixture
def proxy(store, tmp_path) -> TlsProxy:
    return TlsProxy(tmp_path)


def run_client(**environment: str) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if not name.startswith("ANYSCALE_")}
    command = [sys.executable, CONTENT / "client_anyscale_service.py"]
    return subprocess.run(
        command, env=env | environment, capture_output=True, text=True, timeout=60
    )


def ask_through(proxy: TlsProxy, token: str, **environment: str) -> subprocess.CompletedProcess:
    return run_client(
        ANYSCALE_SERVICE_URL=proxy.url,
        ANYSCALE_SERVICE_TOKEN=token,
        REQUESTS_CA_BUNDLE=str(proxy.certificate),
        **environment,
    )


def test_the_client_gets_the_services_answer(ask, proxy, histories):
    done = ask_through(proxy, TOKEN)
    assert done.stdout.strip() == str(ask("customer_123", histories["customer_123"]).json())
    assert proxy.statuses == [200]


def test_the_client_tries_again_when_the_service_is_away(proxy):
    proxy.unavailable = 2
    done = ask_through(proxy, TOKEN)
    assert done.returncode == 0, done.stderr
    assert proxy.statuses == [503, 503, 200]


def test_a_wrong_token_is_said_out_loud_and_not_tried_again(proxy):
    done = ask_through(proxy, "a-wrong-token")
    assert done.returncode == 1
    assert "refuses the token" in done.stderr and "Traceback" not in done.stderr
    assert proxy.statuses == [401]


def test_a_login_for_all_hosts_does_not_take_the_tokens_place(proxy, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password else\n")
    done = ask_through(proxy, TOKEN, NETRC=str(netrc))
    assert (done.returncode, proxy.statuses) == (0, [200]), done.stderr


@pytest.mark.parametrize("missing", ["ANYSCALE_SERVICE_URL", "ANYSCALE_SERVICE_TOKEN"])
def test_what_is_missing_in_the_environment_is_named(missing):
    given = {"ANYSCALE_SERVICE_URL": "https://localhost", "ANYSCALE_SERVICE_TOKEN": "token"}
    done = run_client(**{name: value for name, value in given.items() if name != missing})
    assert done.returncode == 1
    assert done.stderr.startswith(f"{missing} is not set")
