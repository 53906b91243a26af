"""`impound bucket check` against a strict S3: nothing wrong with a good bucket, and each fault named by itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.cli import main
from agent.delivery.bucket.rows import Row, State
from agent.errors import StoreError
from agent.stores.s3 import policies
from tests.rigs.strict_s3 import ACCOUNT
from tests.rigs.tls import Certificates, make_certificates
from tests.support.buckets import (
    BUCKET,
    HOST,
    KEY,
    LIFECYCLE,
    PREFIX,
    UPLOADER,
    Scene,
    good_bucket,
    good_policy,
    not_ok,
)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificates: Certificates) -> Iterator[Scene]:
    with good_bucket(tmp_path, monkeypatch, certificates) as made:
        yield made


def test_a_good_bucket_and_a_good_role_give_no_finding(scene: Scene) -> None:
    rows, left = scene.check(role=scene.uploader())
    assert not_ok(rows) == {}
    tried = [row.name for row in rows if row.name.startswith("the host ")]
    assert len(tried) > 20
    # The probe's uploads could not be aborted by the responder, who may not: one line for all of both trials.
    stay = len(scene.s3.uploads(BUCKET))
    assert stay > 4
    assert len(left) == 1
    assert left[0].startswith(f"{stay} probe uploads stay until the lifecycle takes them: {PREFIX}/impound-check-")
    assert "AccessDenied" not in left[0]
    assert len(left[0]) < 160
    assert scene.s3.keys(BUCKET) == [f"{PREFIX}/impound-check/object"]


def test_a_second_check_makes_no_second_object(scene: Scene) -> None:
    role = scene.uploader()
    scene.check(role=role)
    rows, _ = scene.check(role=role)
    assert not_ok(rows) == {}
    assert scene.s3.keys(BUCKET) == [f"{PREFIX}/impound-check/object"]


def test_what_an_earlier_check_made_is_not_taken_for_somebody_else_s(scene: Scene) -> None:
    _no_denials(scene)
    role = scene.uploader(_everything())
    scene.check(role=role)
    name = "second versions and delete markers"
    row = next(row for row in scene.check(tries=False)[0] if row.name == name)
    assert (row.state, row.mend) == (State.OK, "")
    assert len(row.details) >= 2, "the object that was overwritten, and the marker over nothing"
    assert {line.rpartition(": ")[2] for line in row.details} == {"a probe of `impound bucket check`"}
    # Only names that are exactly a probe's.
    near = ["impound-check/object2", "impound-check-x/absent", "C/impound-check/object"]
    for key in near:
        scene.admin.delete_object(Bucket=BUCKET, Key=f"{PREFIX}/{key}")
    row = next(row for row in scene.check(tries=False)[0] if row.name == name)
    assert row.state is State.FINDING
    assert row.found.startswith("0 keys with more than one version, 3 with a delete marker;")
    assert sorted(line.split(":")[0] for line in row.details if "a probe of" not in line) == sorted(near)


def test_uploads_that_could_not_be_aborted_for_another_reason_say_it(scene: Scene) -> None:
    scene.s3.faults.refuse(100, status=400, code="OddError", where="AbortMultipartUpload")
    own = policies.responder_policy(BUCKET, PREFIX, [UPLOADER], KEY)
    own["Statement"].append({"Effect": "Allow", "Action": "s3:AbortMultipartUpload", "Resource": "*"})
    scene.responder(own)
    _, left = scene.check(role=scene.uploader())
    assert len(left) == 1
    assert "OddError" in left[0]


def test_what_mends_the_role_is_the_role_s_policy(scene: Scene) -> None:
    _no_denials(scene)
    rows, _ = scene.check(role=scene.uploader(_everything()))
    mends = {row.mend for row in rows if row.name.startswith("the role alone") and row.state is not State.OK}
    scene.set_policy(good_policy(source_vpce=["vpce-0123456789abcdef0"]))
    rows, _ = scene.check(role=scene.uploader())
    mends |= {row.mend for row in rows if row.name.startswith("the host starts") and row.state is not State.OK}
    assert len(mends) == 1, "a session has no policy that anybody could mend"
    assert f"impound bucket policy s3://{BUCKET}/{PREFIX} --kind uploader" in mends.pop()


def test_what_a_check_left_is_aborted_by_who_may(scene: Scene) -> None:
    own = policies.responder_policy(BUCKET, PREFIX, [UPLOADER], KEY)
    own["Statement"].append({"Effect": "Allow", "Action": "s3:AbortMultipartUpload", "Resource": "*"})
    scene.responder(own)
    rows, left = scene.check(role=scene.uploader())
    assert not_ok(rows) == {}
    assert left == []
    assert scene.s3.uploads(BUCKET) == []


def test_looking_alone_changes_nothing(scene: Scene) -> None:
    rows, left = scene.check(tries=False)
    assert (not_ok(rows), left, scene.s3.keys(BUCKET), scene.s3.uploads(BUCKET)) == ({}, [], [], [])
    assert {asked.method for asked in scene.s3.requests()} - {"PUT"} == {"GET"}
    assert all("/break-glass/" in asked.principal for asked in scene.s3.requests() if asked.method == "PUT")


# -- each property by itself ------------------------------------------------------------------------------------------


def _lifecycle(**rule: Any) -> Callable[[Scene], object]:
    document = {"Rules": [{**LIFECYCLE["Rules"][0], **rule}]}
    return lambda scene: scene.admin.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration=document)


def _encryption(key_id: str = KEY, way: str = "aws:kms", *, bucket_key: bool = True) -> Callable[[Scene], object]:
    default = {"SSEAlgorithm": way} | ({"KMSMasterKeyID": key_id} if key_id else {})
    rule = {"ApplyServerSideEncryptionByDefault": default, "BucketKeyEnabled": bucket_key}
    return lambda scene: scene.admin.put_bucket_encryption(
        Bucket=BUCKET, ServerSideEncryptionConfiguration={"Rules": [rule]}
    )


def _lock(**configuration: Any) -> Callable[[Scene], object]:
    return lambda scene: scene.admin.put_object_lock_configuration(
        Bucket=BUCKET, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", **configuration}
    )


def _without_lock(scene: Scene) -> None:
    del scene.s3.bucket(BUCKET).documents["object-lock"]


def _suspended(scene: Scene) -> None:
    scene.s3.bucket(BUCKET).documents["versioning"] = (
        b"<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>"
    )


def _ownership(scene: Scene) -> None:
    rules = {"Rules": [{"ObjectOwnership": "BucketOwnerPreferred"}]}
    scene.admin.put_bucket_ownership_controls(Bucket=BUCKET, OwnershipControls=rules)


def _half_open(scene: Scene) -> None:
    block = {"BlockPublicAcls": True, "IgnorePublicAcls": True, "BlockPublicPolicy": False}
    scene.admin.put_public_access_block(Bucket=BUCKET, PublicAccessBlockConfiguration=block)


def _logging(target: dict[str, Any]) -> Callable[[Scene], object]:
    return lambda scene: scene.admin.put_bucket_logging(Bucket=BUCKET, BucketLoggingStatus=target)


def _public(scene: Scene) -> None:
    document = good_policy()
    everybody = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{BUCKET}/*"}
    document["Statement"].append(everybody)
    scene.set_policy(document)


def _second_version(scene: Scene) -> None:
    key = f"{PREFIX}/C/h/name"
    scene.admin.put_object(Bucket=BUCKET, Key=key, Body=b"one", ChecksumAlgorithm="SHA256", IfNoneMatch="*")
    _no_denials(scene)
    scene.admin.put_object(Bucket=BUCKET, Key=key, Body=b"two", ChecksumAlgorithm="SHA256")
    scene.set_policy(good_policy())


def _delete_marker(scene: Scene) -> None:
    run = "018f3b1e-7c00-7abc-8def-0123456789ab"
    scene.admin.delete_object(Bucket=BUCKET, Key=f"{PREFIX}/C-1/i-1/{run}/snapshot/x.zst.age")


@pytest.mark.parametrize(
    ("break_it", "finding"),
    [
        pytest.param(_suspended, "versioning", id="versioning suspended"),
        pytest.param(_without_lock, "object lock", id="no lock"),
        pytest.param(_lock(), "object lock", id="no default retention"),
        pytest.param(_encryption("", "AES256"), "default encryption", id="SSE-S3"),
        pytest.param(_encryption(""), "default encryption", id="key of AWS"),
        pytest.param(_encryption(bucket_key=False), "default encryption", id="no bucket key"),
        pytest.param(_half_open, "public access block", id="half open"),
        pytest.param(
            lambda scene: scene.admin.delete_public_access_block(Bucket=BUCKET), "public access block", id="no block"
        ),
        pytest.param(_ownership, "ownership", id="ACLs count"),
        pytest.param(
            lambda scene: scene.admin.delete_bucket_lifecycle(Bucket=BUCKET),
            "lifecycle aborts unfinished uploads",
            id="no lifecycle",
        ),
        pytest.param(
            _lifecycle(Filter={"Prefix": "elsewhere/"}), "lifecycle aborts unfinished uploads", id="rule elsewhere"
        ),
        pytest.param(_lifecycle(Status="Disabled"), "lifecycle aborts unfinished uploads", id="rule disabled"),
        pytest.param(
            _lifecycle(AbortIncompleteMultipartUpload={"DaysAfterInitiation": 1}),
            "lifecycle aborts unfinished uploads",
            id="aborts too early",
        ),
        pytest.param(_lifecycle(Expiration={"Days": 400}), "lifecycle expires no evidence", id="objects expire"),
        pytest.param(
            _lifecycle(NoncurrentVersionExpiration={"NoncurrentDays": 400}),
            "lifecycle expires no evidence",
            id="versions expire",
        ),
        pytest.param(_logging({}), "access logging", id="no logs"),
        pytest.param(
            _logging({"LoggingEnabled": {"TargetBucket": BUCKET, "TargetPrefix": ""}}), "access logging", id="own logs"
        ),
        pytest.param(_public, "policy is not public", id="public policy"),
        pytest.param(_second_version, "second versions and delete markers", id="second version"),
        pytest.param(_delete_marker, "second versions and delete markers", id="delete marker"),
    ],
)
def test_a_bucket_that_lacks_one_thing_gives_that_finding(
    scene: Scene, break_it: Callable[[Scene], object], finding: str
) -> None:
    break_it(scene)
    rows, _ = scene.check(tries=False)
    assert not_ok(rows) == {finding: State.FINDING}
    row = next(row for row in rows if row.name == finding)
    assert row.why
    assert row.mend


DENIALS = {
    "TlsOnly": {"policy denies requests without TLS"},
    "Tls12OrLater": {"policy denies TLS before 1.2"},
    "CreateOnly": {"policy denies overwriting"},
    "NoDeletion": {"policy denies deletion"},
    "NoBypassOfRetention": {"policy denies bypassing governance"},
    "NoShorterRetention": {"policy denies shorter retention"},
    "NoChangeOfHolds": {"policy denies changing legal holds"},
    "SettingsStay": {
        "policy denies changing versioning", "policy denies changing the lifecycle",
        "policy denies changing the policy", "policy denies changing other settings",
    },
    "NoKeyOfSomebodyElse": {"policy denies keys of somebody else"},
    "OurKmsKeyOnly": {"policy denies keys of somebody else"},
    "MachinesOnlyWrite": {"policy bounds the host's role"},
    "UploadersCompleteNothing": {"policy bounds the host's role"},
}  # fmt: skip


@pytest.mark.parametrize("sid", list(DENIALS))
def test_a_policy_that_lacks_one_statement_gives_that_finding(scene: Scene, sid: str) -> None:
    document = good_policy()
    document["Statement"] = [one for one in document["Statement"] if one["Sid"] != sid]
    scene.set_policy(document)
    rows, _ = scene.check(role=scene.uploader(), tries=False)
    assert not_ok(rows) == dict.fromkeys(DENIALS[sid], State.FINDING)


def test_every_statement_of_the_policy_is_checked() -> None:
    assert {one["Sid"] for one in good_policy()["Statement"]} == set(DENIALS)


def test_without_a_policy_each_denial_is_missing(scene: Scene) -> None:
    scene.s3.set_policy(BUCKET, None)
    del scene.s3.bucket(BUCKET).documents["policy"]
    rows, _ = scene.check(tries=False)
    missing = set().union(*DENIALS.values()) - {"policy bounds the host's role"}
    assert not_ok(rows) == dict.fromkeys(missing, State.FINDING)


def test_the_owner_must_be_the_one_that_was_given(scene: Scene) -> None:
    rows, _ = scene.check(tries=False, s3={"bucket_owner": "444455556666"})
    assert [(row.name, row.state) for row in rows] == [("bucket", State.GRAVE)]


def test_another_region_than_the_bucket_s_is_a_finding(scene: Scene) -> None:
    scene.s3.bucket(BUCKET).region = "eu-west-1"
    rows, _ = scene.check(tries=False)
    assert not_ok(rows) == {"region": State.FINDING}


@pytest.mark.parametrize("offset", [-120.0, 120.0])
def test_a_clock_that_is_off_is_a_finding(scene: Scene, offset: float) -> None:
    scene.s3.clock_offset = offset
    rows, _ = scene.check(tries=False)
    assert not_ok(rows) == {"clock": State.FINDING}
    found = next(row.found for row in rows if row.name == "clock")
    assert float(found.split()[3]) == pytest.approx(-offset, abs=1)


def test_a_clock_that_s3_refuses_is_named(scene: Scene) -> None:
    scene.s3.clock_offset = 3600
    with pytest.raises(StoreError, match=r"clock of this machine is -36\d\d s off"):
        scene.check(tries=False)


def test_a_bucket_that_is_not_there_cannot_be_checked(scene: Scene) -> None:
    scene.s3.vanish(BUCKET)
    with pytest.raises(StoreError, match="no such bucket"):
        scene.check(tries=False)


# -- what lies there --------------------------------------------------------------------------------------------------


def test_unfinished_uploads_are_named_by_run_with_age_parts_and_initiator(scene: Scene) -> None:
    run = "018f3b1e-7c00-7abc-8def-0123456789ab"
    client, key = scene.admin, f"{PREFIX}/INC-1/i-0abc/{run}/memory/physical.lime.zst.age"
    upload = client.create_multipart_upload(Bucket=BUCKET, Key=key, ChecksumAlgorithm="SHA256")["UploadId"]
    for number in (1, 2):
        client.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=number, Body=b"x" * 1000,
                           ChecksumAlgorithm="SHA256")  # fmt: skip
    rows, _ = scene.check(tries=False)
    row = next(row for row in rows if row.name == "unfinished uploads")
    assert row.state is State.OK, "it may be of a run that goes on"
    assert f"INC-1/i-0abc/{run} (1)" in row.found
    assert len(row.details) == 1
    assert "2 parts, 2000 bytes" in row.details[0]
    assert "/break-glass/" in row.details[0]
    assert upload in row.details[0]
    scene.s3.bucket(BUCKET).uploads[upload].initiated -= 3 * 86_400
    rows, _ = scene.check(tries=False)
    assert not_ok(rows) == {"unfinished uploads": State.FINDING}
    assert "3 d ago" in next(row for row in rows if row.name == "unfinished uploads").details[0]


# -- what may not be looked at ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "permission", [*policies.READ_SETTINGS, "s3:ListBucketMultipartUploads", "s3:ListBucketVersions"]
)
def test_what_may_not_be_looked_at_is_named_with_the_permission_that_is_missing(scene: Scene, permission: str) -> None:
    own = policies.responder_policy(BUCKET, PREFIX, [UPLOADER], KEY)
    own["Statement"].append({"Effect": "Deny", "Action": permission, "Resource": "*"})
    scene.responder(own)
    rows, _ = scene.check(tries=False)
    unseen = [row for row in rows if row.state is State.UNKNOWN]
    assert unseen
    assert {row.found for row in unseen} == {f"not allowed: {permission}"}
    assert set(not_ok(rows).values()) == {State.UNKNOWN}


def test_a_role_that_may_not_be_assumed_is_named(scene: Scene) -> None:
    scene.responder(policies.responder_policy(BUCKET, PREFIX, [], KEY))
    rows, _ = scene.check(role=scene.uploader())
    assert not_ok(rows) == {"the host's authority": State.UNKNOWN}


# -- by trying --------------------------------------------------------------------------------------------------------


def _no_denials(scene: Scene) -> None:
    """Only what concerns TLS: the roles' own policies are all there is."""
    document = good_policy()
    document["Statement"] = [one for one in document["Statement"] if one["Sid"] == "TlsOnly"]
    scene.set_policy(document)


def _tried(rows: list[Row], who: str) -> dict[str, State]:
    return {row.name.removeprefix(f"{who} "): row.state for row in rows if row.name.startswith(f"{who} ")}


def _everything() -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


def test_a_session_stays_bounded_where_its_role_is_not_and_the_role_is_a_finding(scene: Scene) -> None:
    _no_denials(scene)
    rows, _ = scene.check(role=scene.uploader(_everything()))
    assert set(_tried(rows, "the host").values()) == {State.OK}
    alone = _tried(rows, "the role alone")
    for name in ("reads an object", "lists parts", "puts an object", "completes its upload", "aborts an upload",
                 "starts an upload elsewhere", "puts the bucket's policy"):  # fmt: skip
        assert alone[name] is State.FINDING, name


PUTS = {"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{BUCKET}/{PREFIX}/*"},
    {"Effect": "Allow", "Action": ["kms:GenerateDataKey", "kms:Decrypt"], "Resource": KEY},
]}  # fmt: skip


def test_a_role_without_the_condition_is_caught(scene: Scene) -> None:
    _no_denials(scene)
    rows, left = scene.check(role=scene.uploader(PUTS))
    alone = _tried(rows, "the role alone")
    wrong = {name for name, state in alone.items() if state is not State.OK}
    assert wrong == {"puts an object", "puts an object, create-only", "completes its upload",
                     "completes its upload, create-only", "overwrites an object"}  # fmt: skip
    assert sum("object" in line.split() for line in left) == 4
    assert any("version" in line for line in left)


def _ambient(scene: Scene, policy: dict[str, Any]) -> tuple[list[Row], list[str]]:
    credential = scene.s3.add_session("host", policy=policy)
    scene.profile("machine", credential)
    return scene.check(profile="machine")


def test_a_machine_s_own_role_may_complete_create_only_and_nothing_else(scene: Scene) -> None:
    rows, left = _ambient(scene, policies.host_policy(BUCKET, PREFIX, KEY))
    assert not_ok(rows) == {}
    tried = _tried(rows, "the host")
    assert tried["completes, create-only"] is State.OK
    assert tried["overwrites an object"] is State.OK
    assert sum(line.startswith("object ") for line in left) == 2, "what it completed and put stays, and is named"
    assert any(HOST in row.found for row in rows if row.name == "policy bounds the host's role")


def test_a_machine_s_role_that_may_everything_is_caught_each_time_and_breaks_nothing(scene: Scene) -> None:
    _no_denials(scene)
    evidence = f"{PREFIX}/C-1/h/evidence"
    scene.admin.put_object(Bucket=BUCKET, Key=evidence, Body=b"evidence", ChecksumAlgorithm="SHA256")
    before = dict(scene.s3.bucket(BUCKET).documents)
    rows, _ = _ambient(scene, _everything())
    tried = _tried(rows, "the host")
    works = {"starts an upload", "adds a part", "completes, create-only", "puts a small object, create-only"}
    assert {name for name, state in tried.items() if state is State.OK} == works
    assert {state for name, state in tried.items() if name not in works} == {State.GRAVE}
    assert len(tried) == 23
    # Whatever was allowed: the settings mean what they meant, and evidence is as it was.
    bucket = scene.s3.bucket(BUCKET)
    assert bucket.versioning == "Enabled"
    assert bucket.policy == json.loads(before["policy"])
    rules = scene.admin.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    assert [(rule["ID"], rule["AbortIncompleteMultipartUpload"]) for rule in rules] == [
        ("unfinished", {"DaysAfterInitiation": 14})
    ]
    assert scene.s3.read(BUCKET, evidence) == b"evidence"
    assert len(bucket.objects[evidence]) == 1


def test_the_bucket_s_policy_alone_bounds_a_machine_that_may_everything(scene: Scene) -> None:
    """The promise of the bucket's policy: it holds whatever the role is given by mistake."""
    rows, _ = _ambient(scene, _everything())
    assert {name: state for name, state in _tried(rows, "the host").items() if state is not State.OK} == {
        "starts an upload elsewhere": State.GRAVE,
        "puts an object elsewhere": State.GRAVE,
    }, "the bucket is the prefix's, as far as its policy goes"


def test_a_host_that_may_not_write_is_a_finding(scene: Scene) -> None:
    scene.set_policy(good_policy(source_vpce=["vpce-0123456789abcdef0"]))
    rows, _ = scene.check(role=scene.uploader())
    wrong = {row.name for row in rows if row.state is not State.OK}
    assert {"the host starts an upload", "the host adds a part"} <= wrong
    scene.s3.world.source_vpce = "vpce-0123456789abcdef0"
    rows, _ = scene.check(role=scene.uploader())
    assert not_ok(rows) == {}


def test_without_an_object_to_try_it_with_reading_is_not_told(scene: Scene) -> None:
    own = policies.responder_policy(BUCKET, PREFIX, [UPLOADER], KEY)
    own["Statement"] = [one for one in own["Statement"] if one["Sid"] != "CreateOnly"]
    scene.responder(own)
    rows, _ = scene.check(role=scene.uploader())
    state = _tried(rows, "the host")
    assert state["reads an object"] is State.UNKNOWN
    assert state["lists objects"] is State.OK


# -- the command ------------------------------------------------------------------------------------------------------


def _command(scene: Scene, *more: str) -> list[str]:
    ca = scene.directory / "ca.pem"
    ca.write_text(scene.s3.ca_pem, "ascii")
    return ["bucket", "check", f"s3://{BUCKET}/{PREFIX}", "--endpoint-url", scene.s3.endpoint_url, "--ca-bundle",
            str(ca), "--bucket-owner", ACCOUNT, *more]  # fmt: skip


def test_the_command_says_it_in_lines_and_in_json(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    role = scene.uploader()
    assert main(_command(scene, "--role", role)) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["verdict"], result["exit"]) == ("no findings", 0)
    assert any(line.startswith("ok ") and "object lock" in line and "GOVERNANCE, 30 days" in line
               for line in err.splitlines())  # fmt: skip
    scene.admin.delete_bucket_lifecycle(Bucket=BUCKET)
    assert main(_command(scene, "--look-only", "--json")) == 1
    out, err = capsys.readouterr()
    *lines, last = [json.loads(line) for line in out.splitlines()]
    assert err == ""
    assert last["finding"] == ["lifecycle aborts unfinished uploads"]
    assert [line["mend"] != "" for line in lines if line["state"] == "finding"] == [True]


def test_without_an_authority_the_command_says_that_nothing_was_tried(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_command(scene)) == 1
    assert json.loads(capsys.readouterr().out)["unknown"] == ["the host's authority"]


def test_no_secret_is_shown(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    credential = scene.s3.add_session("host", policy=policies.host_policy(BUCKET, PREFIX, KEY))
    scene.profile("machine", credential)
    main(_command(scene, "--profile", "machine", "--json"))
    shown = "".join(capsys.readouterr())
    assert credential.secret_key not in shown
    assert credential.token not in shown


def test_a_hostile_name_in_the_bucket_does_not_reach_the_terminal(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    upload = scene.admin.create_multipart_upload(Bucket=BUCKET, Key=f"{PREFIX}/x")["UploadId"]
    scene.s3.bucket(BUCKET).uploads[upload].key = f"{PREFIX}/\u202eodd\x1b[2Jname"
    main(_command(scene, "--look-only"))
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\u202e" not in err
    assert "odd" in err


def test_a_bucket_that_cannot_be_reached_is_a_failure(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    scene.s3.vanish(BUCKET)
    assert main(_command(scene, "--look-only", "--json")) == 3
    assert json.loads(capsys.readouterr().out)["exit"] == 3


def test_credentials_that_end_meanwhile_are_a_failure_and_no_finding(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    role = scene.uploader()
    scene.s3.sts.lifetime_s = 0.0
    assert main(_command(scene, "--role", role)) == 3
    assert "expired" in capsys.readouterr().err


def test_a_profile_that_is_not_there_is_a_usage_error(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_command(scene, "--profile", "nobody")) == 2
    assert "profile" in capsys.readouterr().err
