"""What of a machine may stand in a notebook's way: a web proxy, other code, a home, a taken port.

And how much memory a command takes of it.

The variable SERVICE_URL moves the tutorial, its clients and the chapters to another port.
"""

import ipaddress
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import requests

HOST = "127.0.0.1"
SERVICE = os.environ.get("SERVICE_URL", f"http://{HOST}:8000").rstrip("/")
PORT = urlsplit(SERVICE).port or 80
CONTENT = Path(__file__).parents[1]
LOOK_S = 0.01  # between looks at the memory of a command


def prepare() -> None:
    """Have this process, and those that it starts, find this machine, this code, and a token.

    - Web proxies (`http_proxy`) are left out for this machine's own addresses.
    - This folder's modules come first, whatever PYTHONPATH has, and this environment's commands.
    - Where Ray cannot keep its token in the home folder, it gets one for this session.
    - gRPC does not hold up processes that Ray forks from this one.
    """
    addresses = [own.address for owns in psutil.net_if_addrs().values() for own in owns]
    for name in "no_proxy", "NO_PROXY":  # some programs read one, some the other
        known = os.environ.get(name, "").split(",")
        direct = [*filter(None, known), "localhost", *filter(_is_ip_address, addresses)]
        os.environ[name] = ",".join(dict.fromkeys(direct))
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    folders = [str(CONTENT), *(folder for folder in folders if folder not in ("", str(CONTENT)))]
    os.environ["PYTHONPATH"] = os.pathsep.join(folders)  # of Ray's workers
    if sys.path[0] != str(CONTENT):
        sys.path.insert(0, str(CONTENT))
    commands = str(Path(sys.executable).parent)  # `serve`, `ray`
    if commands not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join((commands, os.environ["PATH"]))
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # else a process that Ray starts may abort
    if not _can_keep_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def ask_directly(method: str, url: str, **options: object) -> requests.Response:
    """Return what requests.request() returns, with no web proxy, and no login from ~/.netrc."""
    with requests.Session() as session:
        session.trust_env = False
        return session.request(method, url, **options)


def require_free_port() -> None:
    """Raise RuntimeError if a process listens where Ray Serve would: the two would take turns."""
    if found := listeners():
        raise RuntimeError(
            f"port {PORT} is taken by {' and '.join(found)}: stop that, "
            f"or set SERVICE_URL=http://{HOST}:8001, or another free port, before you start Jupyter"
        )


def listeners() -> list[str]:
    """Return the programs of this machine that listen on the port: name and process id."""
    pids = {
        socket.pid
        for socket in psutil.net_connections("tcp")
        if socket.status == psutil.CONN_LISTEN and socket.laddr.port == PORT
    }
    return [_describe(pid) for pid in sorted(pids, key=lambda pid: pid or 0)]


def peak_memory_mb(command: Sequence[str | Path]) -> float:
    """Run a command to its end, and return how much memory it has taken at most: MB, resident.

    Raises:
        RuntimeError: if it fails, with what it says.
    """
    pipe = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process, peak = psutil.Popen(command, **pipe), 0
    while process.poll() is None:
        peak = max(peak, process.memory_info().rss)
        with suppress(psutil.TimeoutExpired):
            process.wait(LOOK_S)
    if process.returncode:
        raise RuntimeError(process.communicate()[1])
    return peak / 1e6


def _describe(pid: int | None) -> str:
    if pid is None:
        return "a process of another user"
    try:
        return f"{psutil.Process(pid).name()} (process {pid})"
    except psutil.NoSuchProcess:
        return f"process {pid}"


def _is_ip_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:  # a network card's own
        return False
    return True


def _can_keep_token() -> bool:
    """Return whether Ray has a token, or can write one where it looks for it."""
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return True
    folder = Path.home() / ".ray"
    if (folder / "auth_token").is_file():
        return True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
