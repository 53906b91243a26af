"""What EC2 knows of a machine that SSH is to reach: its address, the host keys on its console, a key for a minute.

The console is what the machine wrote at its first boot (cloud-init): it protects against somebody between here and
there, not against the machine. Everything that comes back is held against a form before it is used.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from typing import TYPE_CHECKING, Any, Self

import msgspec

from agent.aws import session
from agent.errors import AuthorityError, StoreError, UnreachableError, UsageError
from agent.job import S3
from agent.stores.s3.client import standard

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.delivery.ssh.config import Hop
    from agent.delivery.ssh.connection import Authentication

INSTANCE = re.compile(r"i-[0-9a-f]{8}(?:[0-9a-f]{9})?")
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]{2,45}")
_ZONE = re.compile(r"[a-z0-9-]{1,40}")
_BLOCK = re.compile(r"-----BEGIN SSH HOST KEY KEYS-----(.*?)-----END SSH HOST KEY KEYS-----", re.DOTALL)
_KEY = re.compile(r"\b((?:ssh|ecdsa)-[a-z0-9-]{1,40}) ([A-Za-z0-9+/]{40,2000}={0,2})(?=\s|$)")
MAX_KEYS = 32


def is_instance(name: str) -> bool:
    """Whether a host is named by its id in EC2."""
    return INSTANCE.fullmatch(name) is not None


class Instance(msgspec.Struct, frozen=True):
    """A machine, as EC2 describes it."""

    id: str
    private: str
    public: str
    zone: str


def instance(client: Any, name: str) -> Instance:
    """Raises `UsageError` where there is none that runs, `StoreError` where EC2 cannot be asked."""
    answer = _asked("EC2", lambda: client.describe_instances(InstanceIds=[name]))
    found = [one for group in answer.get("Reservations", []) for one in group.get("Instances", [])]
    if len(found) != 1 or found[0].get("InstanceId") != name:
        raise UsageError(f"there is no instance {name} in this account and region")
    one = found[0]
    state = str(one.get("State", {}).get("Name", ""))
    if state != "running":
        raise UsageError(f"the instance {name} is {state[:20] or 'in no known state'}: SSH reaches one that is running")
    zone = str(one.get("Placement", {}).get("AvailabilityZone", ""))
    addresses = [str(one.get(key, "")) for key in ("PrivateIpAddress", "PublicIpAddress")]
    private, public = (text if _ADDRESS.fullmatch(text) else "" for text in addresses)
    return Instance(name, private, public, zone if _ZONE.fullmatch(zone) else "")


class Ec2Host:
    """An instance that is to be reached over SSH, and what EC2 does for that."""

    def __init__(self, described: Instance, ec2: Any, make: Callable[[str], Any]) -> None:
        """`make` gives the client of a service."""
        self.id = described.id
        self._described, self._ec2, self._make = described, ec2, make
        self._user = ""
        self._public = ""

    @classmethod
    def of(cls, name: str, region: str) -> Self:
        """By the responder's own AWS configuration, else in `region`. Raises `UsageError`, `StoreError`."""
        settings = S3(region=session().region_name or region)
        ec2 = standard(settings, "ec2")
        return cls(instance(ec2, name), ec2, lambda service: standard(settings, service))

    def hop(self, named: Hop, address: str, *, public: bool) -> Hop:
        """The hop to it, where it is really. Raises `UsageError`."""
        found = address or (self._described.public if public else self._described.private)
        if not found:
            raise UsageError(
                f"the instance {self.id} has no {'public' if public else 'private'} address: use --address"
            )
        self._user = named.user
        known_as = named.known_as if named.known_as != self.id else found
        return msgspec.structs.replace(named, address=found, known_as=known_as)

    def lines(self, hop: Hop) -> list[str]:
        """The keys on its console, as lines of known hosts. Raises `StoreError`."""
        name = hop.known_as if hop.port == 22 else f"[{hop.known_as}]:{hop.port}"
        return [f"{name} {kind} {text}" for kind, text in console_keys(self._ec2, self.id)]

    def connect(self, authentication: Authentication) -> Authentication:
        """With a key that exists for this run, in memory, and that `send` makes known."""
        import paramiko
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        made = Ed25519PrivateKey.generate()
        pem = made.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        key = paramiko.Ed25519Key.from_private_key(io.StringIO(pem.decode("ascii")))
        self._public = f"{key.get_name()} {key.get_base64()}"
        return msgspec.structs.replace(authentication, more=(key,))

    def send(self) -> None:
        """Makes the key known, where there is one: it is taken for 60 seconds. Raises `StoreError`."""
        if self._public:
            send_key(self._make("ec2-instance-connect"), self.id, self._user, self._public)


def console_keys(client: Any, name: str) -> list[tuple[str, str]]:
    """(type, base64) of the host keys that cloud-init wrote on the console; none where it did not, or not lately.

    Raises `StoreError`.
    """
    from botocore.exceptions import ClientError

    try:
        answer = client.get_console_output(InstanceId=name, Latest=True)
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") != "UnsupportedOperation":  # machines without Nitro
            raise _explained("EC2", error) from error
        answer = _asked("EC2", lambda: client.get_console_output(InstanceId=name))
    except Exception as error:
        raise _explained("EC2", error) from error
    return keys_of(str(answer.get("Output", "")))


def keys_of(console: str) -> list[tuple[str, str]]:
    """The keys in the text of a console: each once, in their order."""
    found: dict[tuple[str, str], None] = {}
    for block in _BLOCK.findall(console):
        for kind, text in _KEY.findall(block):
            if len(found) < MAX_KEYS and _is_of(kind, text):
                found[kind, text] = None
    return list(found)


def _is_of(kind: str, text: str) -> bool:
    """Whether a key says of itself that it is of this type: a line that was broken by others is none."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        return False
    length = int.from_bytes(data[:4], "big")
    return data[4 : 4 + length] == kind.encode("ascii")


def send_key(client: Any, name: str, user: str, public: str) -> None:
    """Puts a public key in the metadata of an instance, from where its sshd takes it for 60 seconds.

    EC2 Instance Connect: the machine needs its package, which Amazon Linux and Ubuntu have. Raises `StoreError`.
    """
    answer = _asked(
        "EC2 Instance Connect",
        lambda: client.send_ssh_public_key(InstanceId=name, InstanceOSUser=user, SSHPublicKey=public),
    )
    if answer.get("Success") is not True:
        raise AuthorityError(f"EC2 Instance Connect took no key for {user} on {name}")


def _asked(who: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        raise _explained(who, error) from error


def _explained(who: str, error: Exception) -> StoreError:
    from botocore.exceptions import BotoCoreError, ClientError

    if isinstance(error, ClientError):
        told = error.response.get("Error", {})
        return AuthorityError(f"{who} refuses: {told.get('Code', 'unknown')}: {str(told.get('Message', ''))[:300]}")
    if isinstance(error, BotoCoreError):
        return UnreachableError(f"{who} cannot be asked: {str(error)[:300]}")
    raise error
