"""What runs inside a guest of tests and does what the test outside asks: standard library only, one file.

Both sides write frames to a virtio console port: 8 bytes of length, little-endian, then JSON; bytes in it are base64.
A request is {"id", "do": "run"|"start"|"wait"|"kill"|"read"|"write", …}; its answer has the same "id". Requests are
served one after another: an agent that does nothing else disturbs the memory of the guest least.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import struct
import subprocess
import sys
import time
from typing import Any

_PORTS = "/sys/class/virtio-ports"
_LENGTH = struct.Struct("<Q")
_LARGEST = 1 << 30

_started: dict[int, subprocess.Popen[bytes]] = {}


def _read(port: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.read(port, min(size - len(data), 1 << 20))
        if not piece:  # nobody holds the other end
            raise EOFError
        data += piece
    return bytes(data)


def _write(port: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(port, view[: 1 << 16]) :]


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _popen(request: dict[str, Any], **streams: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        request["argv"],
        env={**os.environ, **request.get("env", {})},
        cwd=request.get("cwd", "/"),
        start_new_session=True,
        **streams,
    )


def _end(child: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _run(request: dict[str, Any]) -> dict[str, Any]:
    child = _popen(request, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    late = False
    try:
        out, err = child.communicate(base64.b64decode(request.get("stdin", "")), timeout=request["seconds"])
    except subprocess.TimeoutExpired:
        late = True
        _end(child)
        out, err = child.communicate()
    return {"code": child.returncode, "late": late, "out": _text(out), "err": _text(err), "pid": child.pid}


def _start(request: dict[str, Any]) -> dict[str, Any]:
    with open(request.get("output", "/dev/null"), "wb") as output:
        child = _popen(request, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    _started[child.pid] = child
    return {"pid": child.pid}


def _wait(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"code": _started[request["pid"]].wait(request["seconds"]), "late": False}
    except subprocess.TimeoutExpired:
        return {"code": 0, "late": True}


def _kill(request: dict[str, Any]) -> dict[str, Any]:
    child = _started.pop(request["pid"])
    _end(child)
    return {"code": child.wait()}


def _read_file(request: dict[str, Any]) -> dict[str, Any]:
    with open(request["path"], "rb") as file:
        return {"data": _text(file.read(request["most"]))}


def _write_file(request: dict[str, Any]) -> dict[str, Any]:
    with open(request["path"], "wb") as file:
        file.write(base64.b64decode(request["data"]))
    os.chmod(request["path"], request["mode"])
    return {}


_DO = {"run": _run, "start": _start, "wait": _wait, "kill": _kill, "read": _read_file, "write": _write_file}


def _port() -> str:
    """Where the port named "agent" is: the kernel numbers them as it finds them."""
    for _ in range(600):
        for entry in os.scandir(_PORTS) if os.path.isdir(_PORTS) else ():
            with open(os.path.join(entry.path, "name"), encoding="ascii") as name:
                if name.read().strip() == "agent":
                    return f"/dev/{entry.name}"
        time.sleep(0.1)
    raise FileNotFoundError(_PORTS)


def main() -> int:
    """Until the test asks for the end, or is gone: then the machine goes off."""
    port = os.open(_port(), os.O_RDWR | os.O_CLOEXEC)
    while True:
        (size,) = _LENGTH.unpack(_read(port, _LENGTH.size))
        if size > _LARGEST:
            return 1
        request = json.loads(_read(port, size))
        if request["do"] == "end":
            return 0
        try:
            answer = _DO[request["do"]](request)
        except Exception as error:  # noqa: BLE001  # the test is to see it, whatever it is
            answer = {"error": f"{type(error).__name__}: {error}"}
        data = json.dumps({"id": request["id"], **answer}).encode()
        _write(port, _LENGTH.pack(len(data)) + data)


if __name__ == "__main__":
    sys.exit(main())
