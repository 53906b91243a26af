"""The calls of EC2 and of EC2 Instance Connect that reaching a machine takes, over HTTP, for one instance.

with Ec2Api(address="127.0.0.1", authorized=path) as api: … environment | api.environment …

A public key that is sent is written to `authorized`, as the sshd of an instance would find it.
"""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from types import TracebackType

ID = "i-0abc12345678def01"
_XML = "http://ec2.amazonaws.com/doc/2016-11-15/"


class Ec2Api:
    def __init__(self, address: str, authorized: Path, *, console: str = "", state: str = "running") -> None:
        self.address, self.authorized, self.console, self.state = address, authorized, console, state
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.latest = True
        """Whether it can give the console as it is now (Nitro)."""
        self.refuses = ""
        """An action that is answered by UnauthorizedOperation."""
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                status, kind, text = api.answer(self.headers.get("x-amz-target", ""), body)
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return {"AWS_ENDPOINT_URL_EC2": url, "AWS_ENDPOINT_URL_EC2_INSTANCE_CONNECT": url}

    def answer(self, target: str, body: bytes) -> tuple[int, str, bytes]:
        if target:
            said = json.loads(body)
            action = target.rpartition(".")[2]
            self.asked.append((action, said))
            if action == self.refuses:
                return 400, "application/x-amz-json-1.1", b'{"__type":"AuthException","Message":"no"}'
            self.authorized.write_text(said["SSHPublicKey"] + "\n")
            return 200, "application/x-amz-json-1.1", b'{"RequestId":"r","Success":true}'
        said = {key: values[0] for key, values in parse_qs(body.decode()).items()}
        action = said["Action"]
        self.asked.append((action, said))
        if action == self.refuses:
            return self._error("UnauthorizedOperation", "You are not authorized to perform this operation.")
        if action == "DescribeInstances":
            return self._xml(
                action,
                f"<reservationSet><item><instancesSet><item><instanceId>{said['InstanceId.1']}</instanceId>"
                f"<instanceState><name>{self.state}</name></instanceState><privateIpAddress>{self.address}"
                "</privateIpAddress><placement><availabilityZone>eu-central-1a</availabilityZone></placement></item>"
                "</instancesSet></item></reservationSet>",
            )
        if said.get("Latest") == "true" and not self.latest:
            return self._error("UnsupportedOperation", "This instance type does not support it.")
        text = base64.b64encode(self.console.encode()).decode()
        return self._xml(action, f"<instanceId>{ID}</instanceId><output>{text}</output>")

    @staticmethod
    def _xml(action: str, inner: str) -> tuple[int, str, bytes]:
        text = f'<{action}Response xmlns="{_XML}"><requestId>r</requestId>{inner}</{action}Response>'
        return 200, "text/xml", text.encode()

    @staticmethod
    def _error(code: str, message: str) -> tuple[int, str, bytes]:
        text = f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors></Response>"
        return 400, "text/xml", text.encode()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


def console_of(*publics: str) -> str:
    """What cloud-init writes on the console at the first boot, among other things."""
    keys = "\r\n".join(f"{one} root@ip-10-0-3-7" for one in publics)
    return (
        "[    3.141592] cloud-init[512]: Cloud-init v. 24.1 running 'init'\r\n"
        "-----BEGIN SSH HOST KEY FINGERPRINTS-----\r\n256 SHA256:abc root@ip-10-0-3-7 (ED25519)\r\n"
        "-----END SSH HOST KEY FINGERPRINTS-----\r\n"
        f"-----BEGIN SSH HOST KEY KEYS-----\r\n{keys}\r\n-----END SSH HOST KEY KEYS-----\r\n"
        "[   12.000000] login: \r\n"
    )
