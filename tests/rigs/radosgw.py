"""A private Ceph Object Gateway: one monitor, one OSD in memory, one radosgw, on free ports of loopback.

    with RadosGateway() as gateway:                     # about 15 s; needs ceph-mon, ceph-osd, radosgw, ceph
        gateway.client("s3").create_bucket(Bucket="evidence", ObjectLockEnabledForBucket=True)
        suspect = gateway.add_user("suspect")           # a bucket policy names it by suspect.arn
        session = gateway.assume("uploader", {...})     # STS with a session policy
        gateway.empty("evidence")

A real S3 with SigV4, multipart, versioning, Object Lock and bucket policies; Debian's 16.2 knows neither checksums nor
If-None-Match nor BucketOwnerEnforced: whoever uploads owns the object and may read it, unless the policy denies that.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.rigs.s3_process import Program, RigError, answers, free_port

REGION = "us-east-1"
PROGRAMS = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "monmaptool")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_CONFIGURATION = """\
[global]
fsid = {fsid}
mon_host = v1:127.0.0.1:{mon_port}
mon_initial_members = a
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
public_network = 127.0.0.0/8
ms_bind_msgr2 = false
ms_bind_ipv6 = false
run_dir = {directory}
admin_socket = {directory}/$name.asok
pid_file = {directory}/$name.pid
log_file = /dev/null
log_to_file = false
mon_cluster_log_file = {directory}/cluster.log
crash_dir = {directory}/crash
heartbeat_file = {directory}/$name.heartbeat
mon_data = {directory}/mon
mon_data_avail_crit = 1
osd_data = {directory}/osd
osd_objectstore = memstore
memstore_device_bytes = {memory}
osd_class_update_on_start = false
osd_crush_update_on_start = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 2000
rgw_frontends = beast endpoint=127.0.0.1:{port}
rgw_data = {directory}/rgw
rgw_enable_apis = s3, admin, sts
rgw_s3_auth_use_sts = true
rgw_sts_key = {sts_key}
rgw_gc_obj_min_wait = 1
rgw_gc_processor_period = 5
"""


def missing_program() -> str:
    """A program that this rig needs and that is not here, or ""."""
    return next((name for name in PROGRAMS if shutil.which(name, path=_PATH) is None), "")


@dataclass(frozen=True, slots=True)
class User:
    """Credentials on the gateway; `arn` is what policies call it (its ARNs have no account)."""

    name: str
    access_key: str
    secret_key: str = field(repr=False)
    token: str = field(default="", repr=False)

    @property
    def arn(self) -> str:
        return f"arn:aws:iam:::user/{self.name}"


class RadosGateway:
    """The gateway with its cluster. `memory` bounds what it stores, in bytes; `admin` owns the buckets."""

    region = REGION

    def __init__(self, *, memory: int = 6 << 30) -> None:
        self._memory = memory
        self._closing = contextlib.ExitStack()
        self._programs: list[Program] = []
        self._roles: set[str] = set()
        self.directory = Path()
        self.port = 0
        self.admin = User("", "", "")

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        missing = missing_program()
        if missing:
            raise RigError(f"needs {missing}")
        with contextlib.ExitStack() as closing:
            # Not below pytest's directory: a socket's path has 107 bytes.
            name = closing.enter_context(tempfile.TemporaryDirectory(prefix="rgw-", ignore_cleanup_errors=True))
            self.directory = Path(name)
            closing.callback(self._stop)
            try:
                self._start(self.directory / "1")
            except RigError:
                # A port that was free is taken now, or the machine is very busy: once more.
                self._stop()
                self._start(self.directory / "2")
            self.admin = self.add_user("admin")
            self._closing = closing.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.__exit__(kind, error, trace)

    # -- start and stop -----------------------------------------------------------------------------------------------

    def _environment(self) -> dict[str, str]:
        return {"PATH": _PATH, "HOME": str(self.directory), "CEPH_CONF": str(self.directory / "ceph.conf")}

    def _run(self, *arguments: str, seconds: float = 60) -> str:
        try:
            done = subprocess.run(
                [*arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=seconds,
                cwd=self.directory,
                env=self._environment(),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RigError(f"{arguments[0]} takes more than {seconds:.0f} s") from error
        if done.returncode:
            raise RigError(f"{' '.join(arguments[:4])}: {done.stderr.decode('utf-8', 'replace')[-1000:]}")
        return done.stdout.decode("utf-8", "replace")

    def _begin(self, name: str, *arguments: str) -> Program:
        program = Program([name, *arguments], self.directory / f"{name}.log", self._environment(), self.directory)
        self._programs.append(program)
        return program

    def _start(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        fsid, mon_port = str(uuid.uuid4()), free_port()
        self.port = free_port()
        configuration = self.directory / "ceph.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                fsid=fsid,
                mon_port=mon_port,
                port=self.port,
                directory=self.directory,
                memory=self._memory,
                sts_key=uuid.uuid4().hex[:16],
            )
        )
        for name in ("mon", "osd", "rgw", "crash"):
            (self.directory / name).mkdir()
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v1:127.0.0.1:{mon_port}]", "monmap")
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap")
        monitor = self._begin("ceph-mon", "-f", "-i", "a")
        monitor.wait_until(lambda: self._can("ceph", "--connect-timeout", "2", "status"), 40)
        osd_uuid = str(uuid.uuid4())
        self._run("ceph", "osd", "create", osd_uuid)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_uuid)
        # By hand: an OSD that does it asks before it knows the cluster's id, and is refused now and then.
        self._run("ceph", "osd", "crush", "add", "osd.0", "1.0", "host=here", "root=default")
        osd = self._begin("ceph-osd", "-f", "-i", "0")
        osd.wait_until(self._osd_is_up, 40)
        gateway = self._begin("radosgw", "-f", "-n", "client.rgw")
        gateway.wait_until(lambda: answers(self.endpoint_url), 90)

    def _can(self, *arguments: str) -> bool:
        try:
            self._run(*arguments, seconds=10)
        except RigError:
            return False
        return True

    def _osd_is_up(self) -> bool:
        return '"num_up_osds":1' in self._run("ceph", "osd", "stat", "--format", "json", seconds=20).replace(" ", "")

    def _stop(self) -> None:
        # The OSD would write all its memory to disk first.
        for program in reversed(self._programs):
            program.stop(gently_s=0)
        self._programs.clear()

    @property
    def pids(self) -> list[int]:
        return [program.pid for program in self._programs]

    # -- use ----------------------------------------------------------------------------------------------------------

    def _admin(self, *arguments: str) -> Any:
        output = self._run("radosgw-admin", *arguments)
        return json.loads(output) if output.lstrip().startswith(("{", "[")) else output

    def add_user(self, name: str) -> User:
        """A user that may do nothing with the buckets of others until a bucket policy says so."""
        keys = self._admin("user", "create", f"--uid={name}", f"--display-name={name}")["keys"][0]
        return User(name, keys["access_key"], keys["secret_key"])

    def assume(
        self, role: str, session_policy: dict[str, Any] | None, *, seconds: int = 3600, policy: Any = None
    ) -> User:
        """A session of a role, which is made where there is none and may do everything that `policy` does not bound."""
        everything = {"Effect": "Allow", "Action": ["s3:*"], "Resource": "arn:aws:s3:::*"}
        trust = {"Effect": "Allow", "Principal": {"AWS": [self.admin.arn]}, "Action": ["sts:AssumeRole"]}
        if role not in self._roles:
            self._roles.add(role)
            self._admin("role", "create", f"--role-name={role}", f"--assume-role-policy-doc={_compact(_policy(trust))}")
        document = _compact(policy or _policy(everything))
        self._admin("role-policy", "put", f"--role-name={role}", "--policy-name=all", f"--policy-doc={document}")
        # 16.2 does not decode the spaces of a form: a policy must have none.
        more = {} if session_policy is None else {"Policy": _compact(session_policy)}
        answer = self.client("sts").assume_role(
            RoleArn=f"arn:aws:iam:::role/{role}", RoleSessionName="session", DurationSeconds=seconds, **more
        )["Credentials"]
        return User(role, answer["AccessKeyId"], answer["SecretAccessKey"], answer["SessionToken"])

    def client(self, service: str = "s3", user: User | None = None, **config: Any) -> Any:
        """A boto3 client; it retries nothing and adds no checksum of its own."""
        import boto3
        from botocore.config import Config

        who = user or self.admin
        session = boto3.Session(who.access_key, who.secret_key, who.token or None, REGION)
        settings = {
            "retries": {"total_max_attempts": 1},
            "s3": {"addressing_style": "path"},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            **config,
        }
        made = session.client(service, endpoint_url=self.endpoint_url, config=Config(**settings))
        self._closing.callback(made.close)
        return made

    def empty(self, bucket: str) -> None:
        """Removes the bucket with all that is in it, whatever locks or policies say, and frees its memory."""
        self._run("radosgw-admin", "bucket", "rm", f"--bucket={bucket}", "--purge-objects", "--bypass-gc", seconds=120)
        self._run("radosgw-admin", "gc", "process", "--include-all", seconds=120)


def _policy(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _compact(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"))
