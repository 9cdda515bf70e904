"""A machine may have a web proxy, other people's code, no home, or another program at the port."""

import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from lab import this_machine
from lab.this_machine import ask_directly, listeners, peak_memory_mb, require_free_port

CONTENT = Path(this_machine.__file__).resolve().parents[1]
AFTER_PREPARE = """
import json, os, subprocess, sys, urllib.request
sys.path.insert(0, {content!r})
from lab import this_machine
this_machine.prepare()
this_machine.prepare()  # twice is as good as once
child = sys.executable, "-c", "import forecast_service; print(forecast_service.__file__)"
print(json.dumps({{
    "environment": dict(os.environ),
    "loopback is proxied": not urllib.request.proxy_bypass("127.0.0.1"),
    "elsewhere is proxied": not urllib.request.proxy_bypass("example.com"),
    "code of a child": subprocess.check_output(child, cwd="/", text=True),
}}))
"""


def prepared(folder: Path, **environment: str) -> dict:
    """Return what a process on an odd machine says after it has prepared itself."""
    unset = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "no_proxy", "NO_PROXY"}
    env = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "-c", AFTER_PREPARE.format(content=str(CONTENT))]
    done = subprocess.run(
        command, cwd=folder, env=env | environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def taken_port(monkeypatch) -> int:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr(this_machine, "PORT", port)
        yield port


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY"])
def test_a_web_proxy_is_left_out_for_this_machine_alone(tmp_path, variable):
    said = prepared(tmp_path, **{variable: "http://127.0.0.1:9", "no_proxy": "intranet"})
    assert not said["loopback is proxied"] and said["elsewhere is proxied"]
    for name in "no_proxy", "NO_PROXY":
        hosts = said["environment"][name].split(",")
        assert {"localhost", "127.0.0.1"} <= set(hosts) and len(hosts) == len(set(hosts))
    assert "intranet" in said["environment"]["no_proxy"].split(",")


def test_this_folders_code_comes_before_other_peoples(tmp_path):
    foreign = tmp_path / "forecast_service"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("raise ImportError('other people have this name, too')")
    said = prepared(tmp_path, PYTHONPATH=str(tmp_path))
    assert said["code of a child"].strip() == str(CONTENT / "forecast_service" / "__init__.py")
    assert said["environment"]["PYTHONPATH"].split(os.pathsep)[:2] == [str(CONTENT), str(tmp_path)]


def test_commands_of_this_environment_are_found(tmp_path):
    said = prepared(tmp_path, PATH="/usr/bin")
    folders = said["environment"]["PATH"].split(os.pathsep)
    assert folders == [str(Path(sys.executable).parent), "/usr/bin"]


def test_without_a_home_to_write_to_ray_gets_a_token_for_the_session(tmp_path):
    said = prepared(tmp_path, HOME="/proc/nobody")  # where not even root can make a folder
    assert len(bytes.fromhex(said["environment"]["RAY_AUTH_TOKEN"])) == 32


@pytest.mark.parametrize("has_token", [True, False])
def test_with_a_home_ray_keeps_its_token_there(tmp_path, has_token):
    if has_token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    assert "RAY_AUTH_TOKEN" not in prepared(tmp_path, HOME=str(tmp_path))["environment"]


def test_a_token_of_the_environment_stays(tmp_path):
    said = prepared(tmp_path, HOME="/proc/nobody", RAY_AUTH_TOKEN="ab" * 32)
    assert said["environment"]["RAY_AUTH_TOKEN"] == "ab" * 32


def test_who_has_the_port_is_named_and_the_way_out(taken_port):
    with pytest.raises(RuntimeError) as said:
        require_free_port()
    for part in f"port {taken_port} is taken", f"(process {os.getpid()})", "SERVICE_URL=http://":
        assert part in str(said.value)


def test_a_free_port_is_free(taken_port, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setattr(this_machine, "PORT", free.getsockname()[1])
    assert listeners() == []
    require_free_port()


def test_a_request_goes_to_this_machine_whatever_the_environment_says(monkeypatch, tmp_path):
    heard = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    (tmp_path / ".netrc").write_text("default login me password mine\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert ask_directly("get", url, timeout=10).status_code == 204
    assert "Authorization" not in heard[0]


@pytest.mark.parametrize(
    ("url", "port"), [(None, 8000), ("http://127.0.0.1:8123/", 8123), ("http://127.0.0.1", 80)]
)
def test_one_variable_moves_the_service(url, port):
    env = {name: value for name, value in os.environ.items() if name != "SERVICE_URL"}
    env |= {"SERVICE_URL": url} if url else {}
    tell = "from lab import this_machine; print(this_machine.PORT, this_machine.SERVICE)"
    command = [sys.executable, "-c", tell]
    said = subprocess.check_output(command, cwd=CONTENT, env=env, text=True, timeout=60).split()
    assert said == [str(port), (url or "http://127.0.0.1:8000").rstrip("/")]


def test_the_most_memory_that_a_command_takes_is_measured_and_a_command_that_fails_says_why():
    allocate = "taken = b'x' * ({} * 1_000_000); sum(range(5_000_000)); del taken"
    little, more = (peak_memory_mb([sys.executable, "-c", allocate.format(mb)]) for mb in (1, 201))
    assert 180 < more - little < 250, "not what it has taken at most"
    with pytest.raises(RuntimeError, match="no such thing"):
        peak_memory_mb([sys.executable, "-c", "raise SystemExit('no such thing')"])
