"""`impound deploy ssh`: brings the agent into the memory of a machine over SSH, and holds the authority here."""

from __future__ import annotations

import functools
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from agent.cli.deploy import ATTACH, lasting
from agent.cli.deploy_job import job_options
from agent.cli.deploy_run import perform
from agent.cli.output import say
from agent.errors import ImpoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from agent.delivery.bootstrap import Brought
    from agent.delivery.released import Agent
    from agent.delivery.remote import Reached
    from agent.delivery.ssh.config import Hop
    from agent.delivery.ssh.connection import Authentication, Connection
    from agent.delivery.ssh.hostkeys import KnownHosts
    from agent.delivery.ssh.program import SshProgram

END_S = 2.0


@click.command("ssh")
@click.argument("target", metavar="[USER@]HOST[:PORT]")
@click.option(
    "--address", default="", metavar="ADDR", help="Of an instance (i-…): where it is. Default: its private address."
)
@click.option("--public", is_flag=True, help="Of an instance (i-…): by its public address.")
@click.option(
    "--instance-connect",
    is_flag=True,
    help="Of an instance (i-…): log in with a key made for this run, by EC2 Instance Connect.",
)
@click.option("--key", "keys", multiple=True, metavar="FILE", help="Private key to log in with. Default: as ssh does.")
@click.option("--no-agent", is_flag=True, help="Ask no SSH agent for keys.")
@click.option(
    "--known-hosts", multiple=True, metavar="FILE", help="Host keys that are trusted. Default: those that ssh reads."
)
@click.option(
    "--host-key", "fingerprints", multiple=True, metavar="SHA256:…", help="The fingerprint that the host's key has."
)
@click.option("--jump", "jumps", multiple=True, metavar="HOST", help="Through this host first; repeated, in order.")
@click.option("--ssh-config", metavar="FILE", help="Instead of ~/.ssh/config; an empty name for none.")
@click.option("--agent", "agent_file", default="", metavar="FILE", help="The agent's binary. Default: of this release.")
@click.option(
    "--preinstalled",
    is_flag=True,
    help="Start /opt/impound/bin/impound of the host, if it is what was released (or --agent).",
)
@click.option("--place", "places", multiple=True, metavar="DIR", help="A tmpfs of the host to start the agent from.")
@click.option("--no-sudo", is_flag=True, help="Acquire as the user that logs in, even if that is not root.")
@job_options
def command(target: str, as_json: bool, **values: Any) -> int:
    """Deploy over SSH. Nothing is written to a disk of the host, and nothing has to be installed there.

    The agent goes through the connection into the host's memory. The host's key must be known: nothing is added to any
    file, and one that has changed ends the command with exit code 2. Of an EC2 instance, i-..., the keys that its first
    boot wrote on its console count as well.

    \b
    Example:
      impound deploy ssh root@10.0.3.7 --case INC-42 --to s3://evidence/cases -r age1...
      impound deploy ssh ec2-user@10.0.3.7 --jump bastion --case INC-42 --to s3://evidence/cases -r age1...
      impound deploy ssh ec2-user@i-0abc12345678def01 --instance-connect --case INC-42 --to s3://evidence/x -r age1...
      impound deploy ssh web-1 --host-key SHA256:... --case INC-42 --to s3://evidence/cases -r age1... --skip memory

    \b
    Exit code: as for `acquire`; 2, too, for a host key that is not known; 3, too, when the channel broke.
    """
    given = {name: values.pop(name) for name in _OWN} | {"region": values["region"]}

    def reach(on_line: Callable[[bytes], object]) -> Reached:
        return _reach(target, given, on_line)

    _check(target, given)
    return perform(reach, values, as_json=as_json)


_OWN = (
    "keys", "no_agent", "known_hosts", "fingerprints", "jumps", "ssh_config", "agent_file", "preinstalled", "places",
    "no_sudo", "address", "public", "instance_connect",
)  # fmt: skip


def _check(target: str, given: dict[str, Any]) -> None:
    """Raises `UsageError` for what needs no connection to be seen."""
    from agent.delivery.ssh.config import route
    from agent.delivery.ssh.ec2 import is_instance

    try:
        import paramiko  # noqa: F401 - the one file for hosts leaves it out
    except ImportError as error:
        raise UsageError(
            "deploying over SSH needs impound as a Python package (pip install impound): this one is made for hosts"
        ) from error
    hops = route(target, given["jumps"], given["keys"], given["ssh_config"])
    if not is_instance(hops[-1].known_as) and (given["address"] or given["public"] or given["instance_connect"]):
        raise UsageError("--address, --public and --instance-connect are for an EC2 instance: [USER@]i-…")
    check_directories(given["places"])
    check_agent(given["agent_file"])


def check_directories(places: list[str]) -> None:
    """Raises `UsageError` for what the script on the host would not take for one directory."""
    for place in places:
        if not place.startswith("/") or any(one.isspace() for one in place) or not place.isprintable():
            raise UsageError(f"--place is the full path of a directory without spaces, not {place[:100]!r}")


def check_agent(given: str) -> None:
    """Raises `UsageError` where there is an agent for no machine at all."""
    from agent.delivery.released import MACHINES, find, released

    if not given and released():
        return
    problems = []
    for machine in MACHINES.values():
        try:
            find(machine, given)
        except UsageError as error:
            problems.append(error)
    if len(problems) == len(MACHINES):
        raise problems[0]


def _reach(target: str, given: dict[str, Any], on_line: Callable[[bytes], object]) -> Reached:
    from agent.delivery.lasting_remote import LastingRemote, new_name
    from agent.delivery.remote import Reached
    from agent.delivery.ssh.config import route
    from agent.delivery.ssh.connection import Authentication
    from agent.delivery.ssh.ec2 import Ec2Host, is_instance

    hops = route(target, given["jumps"], given["keys"], given["ssh_config"])
    machine = Ec2Host.of(hops[-1].known_as, given["region"]) if is_instance(hops[-1].known_as) else None
    authentication = Authentication(not given["no_agent"], functools.cache(_passphrase))
    if machine is not None:
        hops[-1] = machine.hop(hops[-1], given["address"], public=given["public"])
        if given["instance_connect"]:
            authentication = machine.connect(authentication)
    known = _known(given, machine.lines(hops[-1]) if machine is not None else [])
    way = _Way(hops, known, authentication, machine.send if machine is not None else lambda: None, given, on_line)
    connection = way.connect()
    for _, key in connection.keys:
        if key.differs:
            say(f"impound: {key.differs}; taken all the same, by the fingerprint that you gave")
    name = new_name()
    program, brought = way.start(lasting(name), connection)
    how = _how(connection, brought, released=way.released)
    if machine is not None:
        how["instance"] = machine.id
    return Reached(LastingRemote(program, lambda: way.start([*ATTACH, name])[0], _tell), how)


class _Way:
    """The way to a host, for as often as it is gone."""

    def __init__(
        self,
        hops: list[Hop],
        known: Callable[[Hop], KnownHosts],
        authentication: Authentication,
        before_login: Callable[[], object],
        given: dict[str, Any],
        on_line: Callable[[bytes], object],
    ) -> None:
        self._hops, self._known, self._authentication = hops, known, authentication
        self._before_login, self._given, self._on_line = before_login, given, on_line
        self.released = False

    def connect(self) -> Connection:
        from agent.delivery.ssh.connection import Connection

        return Connection(self._hops, self._known, self._authentication, before_login=self._before_login)

    def start(self, command: Sequence[str], connection: Connection | None = None) -> tuple[SshProgram, Brought]:
        """The agent with these arguments, over a connection that is there or a new one. Raises `ImpoundError`."""
        from agent.delivery import bootstrap
        from agent.delivery.ssh.program import SshProgram

        user, given = self._hops[-1].user, self._given
        sudo = [] if user == "root" or given["no_sudo"] else ["sudo", "-n", "--"]
        ways = [bootstrap.INSTALLED] if given["preinstalled"] else [*given["places"], *bootstrap.WAYS]
        connection = connection or self.connect()
        try:
            program = SshProgram(connection, shlex.join([*sudo, *bootstrap.argv(command, ways)]), self._on_line)
        except BaseException:
            connection.close()
            raise
        try:
            return program, bootstrap.bring(
                program.reads, program.writes, self._choose, installed=given["preinstalled"]
            )
        except ImpoundError as error:
            code = program.end(END_S)
            if sudo and code == 1 and not isinstance(error, UsageError):
                raise UsageError(
                    f"{user} may not become root there without a password: log in as root, or let sudo -n allow it; "
                    "--no-sudo acquires what that user may read"
                ) from error
            raise
        except BaseException:
            program.end(0.0)
            raise

    def _choose(self, architecture: str) -> Agent:
        from agent.delivery.released import find

        found = find(architecture, self._given["agent_file"])
        self.released = found.released
        return found


def _tell(line: str) -> None:
    say(f"impound: {line}")


def _known(given: dict[str, Any], lines: list[str]) -> Callable[[Hop], KnownHosts]:
    from agent.delivery.ssh.hostkeys import KnownHosts, default_files

    def of(hop: Hop) -> KnownHosts:
        files = given["known_hosts"] or [one for one in hop.known_hosts if os.path.isfile(one)] or default_files()
        return KnownHosts(files, given["fingerprints"], lines)

    return of


def _passphrase(path: str) -> str:
    if not sys.stdin.isatty():
        raise UsageError(f"the key {path!r} has a passphrase: add it to an SSH agent")
    return str(click.prompt(f"Passphrase of {path}", hide_input=True, err=True))


def _how(connection: Connection, brought: Brought, *, released: bool) -> dict[str, str]:
    hop, key = connection.keys[-1]
    how = {
        "transport": "ssh",
        "address": f"{hop.address} port {hop.port}",
        "user": hop.user,
        "host_key": f"{key.kind} {key.fingerprint}",
        "host_key_trust": key.trust,
        "agent_sha256": brought.sha256,
        "agent_way": brought.way,
        "agent_checked": "by the host" if brought.checked else "no",
        "agent_released": "yes" if released else "no",
    }
    if key.differs:
        how["host_key_differs"] = key.differs[:1000]
    if connection.keys[:-1]:
        how["jumps"] = ", ".join(_jumps(connection))
    return how


def _jumps(connection: Connection) -> Iterator[str]:
    for hop, key in connection.keys[:-1]:
        yield f"{hop.user}@{hop.address} port {hop.port} {key.kind} {key.fingerprint}"
