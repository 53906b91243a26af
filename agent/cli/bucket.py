"""`impound bucket`: is an evidence bucket what it should be, and the policies that make it so."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from agent.cli import options
from agent.cli.output import emit, json_line, printable, say
from agent.cli.s3_options import make_s3, s3_options
from agent.errors import UsageError

if TYPE_CHECKING:
    from agent.delivery.bucket.rows import Row

KINDS = ("bucket", "session", "uploader", "host", "responder", "analyst", "break-glass", "endpoint")


@click.group("bucket")
def command() -> None:
    """Check an evidence bucket, or print the policies that it and its roles should have.

    \b
    Example:
      impound bucket check s3://evidence/cases --role arn:aws:iam::111122223333:role/impound-uploader
      impound bucket check s3://evidence/cases --look-only --json
      impound bucket policy s3://evidence/cases --break-glass arn:aws:iam::111122223333:role/break-glass
      impound bucket policy s3://evidence/cases --kind responder --uploader-role arn:... --kms-key arn:...

    \b
    check   --role | --profile | --look-only, --sse-kms-key, --bucket-owner, --region, --endpoint-url, --ca-bundle
    policy  --kind, --break-glass, --uploader-role, --host-role, --kms-key, --signing-key, --sealing-key,
            --source-vpce, --retention-days, --agent-bucket, --bucket-owner, --region, --partition
    """


@command.command("check")
@click.argument("source", metavar="s3://BUCKET/PREFIX")
@click.option("--role", default="", metavar="ARN", help="The role of the hosts' sessions: assumed, and tried.")
@click.option(
    "--profile", default="", metavar="NAME", help="An AWS profile with a machine's own role (ambient): tried."
)
@click.option("--look-only", is_flag=True, help="Try nothing: no request that could change anything is sent.")
@click.option("--sse-kms-key", default="", metavar="ARN", help="S3: the key that objects must be encrypted with.")
@s3_options
@options.json_option
def check_command(**values: Any) -> int:
    """Say of each property of a bucket what it is, why it matters, and how to mend it; prove by trying.

    With --role, a session is minted as for a run, and tries to read, list, overwrite, delete, complete, … : each must
    be refused. With --profile a machine's own role is tried. What the tries leave behind is named: one small object,
    once, and what should have been refused. Look and try with the responder's own AWS configuration.

    \b
    Example:
      impound bucket check s3://evidence/cases --role arn:aws:iam::111122223333:role/impound-uploader

    \b
    Exit code: 0 no findings, 1 findings, or something that could not be looked at, 2 usage, 3 failed.
    """
    from agent.delivery.bucket.check import Checked, check
    from agent.delivery.bucket.looking import Looking
    from agent.stores.s3.client import standard
    from agent.stores.s3.place import parse_place

    place, as_json = parse_place(values.pop("source")), values.pop("as_json")
    role, profile, look_only = values.pop("role"), values.pop("profile"), values.pop("look_only")
    if sum(map(bool, (role, profile, look_only))) > 1:
        raise UsageError("give one of --role, --profile and --look-only")
    s3 = make_s3(values, sse_kms_key=values.pop("sse_kms_key"))
    client = standard(s3)
    look = Looking(client, place, s3, str(client.meta.partition or "aws"))
    rows: list[Row] = []
    checked = Checked()
    said: set[str] = set()
    for row in check(look, checked, role=role, profile=profile, tries=not look_only):
        rows.append(row)
        _tell(row, said, as_json=as_json)
    for left in checked.left:
        if not as_json:
            say(f"left     {left}")
    return _result(str(place), rows, checked.left)


def _tell(row: Row, said: set[str], *, as_json: bool) -> None:
    """One row. What mends several is said once in full."""
    if as_json:
        click.echo(json_line(row.plain()))
        return
    say(f"{row.state.value.upper() if row.state.value != 'ok' else 'ok':<8} {row.name:<44} {row.found}")
    for detail in row.details:
        say(f"{'':<8}   {detail}")
    if row.state.value != "ok":
        if row.why:
            say(f"{'':<8}   why:  {row.why}")
        if row.mend:
            say(f"{'':<8}   mend: {'as above' if row.mend in said else row.mend}")
            said.add(row.mend)


def _result(place: str, rows: list[Row], left: list[str]) -> int:
    of = {state: [row.name for row in rows if row.state.value == state] for state in ("grave", "finding", "unknown")}
    counted = Counter(row.state.value for row in rows)
    code = 1 if any(of.values()) else 0
    result: dict[str, object] = {"verdict": "findings" if code else "no findings", "place": place, "ok": counted["ok"]}
    result |= {state: names for state, names in of.items() if names}
    if left:
        result["left"] = [printable(one) for one in left]
    emit(result | {"exit": code})
    return code


@command.command("policy")
@click.argument("source", metavar="s3://BUCKET[/PREFIX]")
@click.option("--kind", type=click.Choice(KINDS), default="bucket", show_default=True, help="Whose policy.")
@click.option("--break-glass", multiple=True, metavar="ARN", help="bucket: who is excepted where somebody must be.")
@click.option("--uploader-role", multiple=True, metavar="ARN", help="bucket, responder: the role of hosts' sessions.")
@click.option("--host-role", multiple=True, metavar="ARN", help="bucket: a machine's own role (ambient).")
@click.option("--kms-key", default="", metavar="ARN", help="The key of the bucket's encryption.")
@click.option("--signing-key", default="", metavar="ARN", help="responder: the key that countersigns.")
@click.option("--sealing-key", default="", metavar="ARN", help="analyst: the KMS key behind an age recipient.")
@click.option("--source-vpce", multiple=True, metavar="ID", help="bucket: machines may write through it only.")
@click.option("--retention-days", type=click.IntRange(1, 36_500), default=30, show_default=True, help="bucket: least.")
@click.option("--agent-bucket", default="", metavar="NAME", help="endpoint: where machines get impound from.")
@click.option("--bucket-owner", default="", metavar="ID", help="endpoint: the account that owns the bucket.")
@click.option("--region", default="", metavar="NAME", help="endpoint: the region of the bucket.")
@click.option("--partition", default="aws", show_default=True, metavar="aws|aws-us-gov|aws-cn", help="Of all ARNs.")
def policy_command(**values: Any) -> int:
    """Print a policy document: that of the bucket, of a role, of one run's session, or of a VPC endpoint.

    \b
    Example:
      impound bucket policy s3://evidence --break-glass arn:aws:iam::111122223333:role/break-glass > policy.json
      aws s3api put-bucket-policy --bucket evidence --policy file://policy.json
    """
    import json

    text = _document(values)
    click.echo(text if isinstance(text, str) else json.dumps(text, indent=2))
    return 0


def _document(values: dict[str, Any]) -> dict[str, Any] | str:
    from agent.stores.s3 import policies
    from agent.stores.s3.place import parse_place

    place = parse_place(values["source"])
    kind, partition, key = values["kind"], values["partition"], values["kms_key"]
    if not re.fullmatch(r"aws(?:-[a-z]{2,10}){0,3}", partition):
        raise UsageError(f"--partition is aws, aws-us-gov or aws-cn, not {partition[:40]!r}")
    for vpce in values["source_vpce"]:
        if not re.fullmatch(r"vpce-[0-9a-f]{8,17}", vpce):
            raise UsageError(f"--source-vpce is written vpce-0123…, not {vpce[:40]!r}")
    where = place.bucket, place.prefix
    if kind == "bucket":
        return policies.bucket_policy(
            place.bucket,
            break_glass=values["break_glass"],
            uploaders=values["uploader_role"],
            hosts=values["host_role"],
            kms_key=key,
            source_vpce=values["source_vpce"],
            retention_days=values["retention_days"],
            partition=partition,
        )
    if kind == "session":
        return policies.session_policy(*where, key, partition=partition)
    if kind == "uploader":
        return policies.uploader_policy(*where, key, partition=partition)
    if kind == "host":
        return policies.host_policy(*where, key, partition=partition)
    if kind == "responder":
        return policies.responder_policy(
            *where, values["uploader_role"], key, signing_key=values["signing_key"], partition=partition
        )
    if kind == "analyst":
        return policies.analyst_policy(*where, key, values["sealing_key"], partition=partition)
    if kind == "break-glass":
        return policies.break_glass_policy(place.bucket, partition)
    return policies.endpoint_policy(
        *where, values["bucket_owner"], values["region"], values["agent_bucket"], partition=partition
    )
