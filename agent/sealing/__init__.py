"""Digest, compression and encryption of evidence while it streams, and the way back.

`Sealer` pushes one object through SHA-256, zstd frames with a seek table, and age v1 (C2SP `age.md`) into a sink;
`Unsealed` opens it from anything that can be read anywhere, whole or by range. `seal_bytes` and `open_bytes` are for
small things. Stock tools read all of it: `age -d -i key object | zstd -d`.
"""

from __future__ import annotations

from agent.sealing.cores import default_workers
from agent.sealing.governor import Governor
from agent.sealing.identities import (
    Identity,
    KeyIdentity,
    X25519Identity,
    generate,
    parse_identity_file,
    render_identity_file,
)
from agent.sealing.kmsidentity import KmsIdentity
from agent.sealing.p256tag import P256TagIdentity, P256TagRecipient
from agent.sealing.p256tagpq import P256TagPQIdentity, P256TagPQRecipient
from agent.sealing.pipeline import Pipeline
from agent.sealing.postquantum import PostQuantumIdentity, PostQuantumRecipient, generate_post_quantum
from agent.sealing.recipients import (
    Recipient,
    X25519Recipient,
    check_recipients,
    distinct,
    parse_recipient,
    parse_recipients_file,
)
from agent.sealing.sealer import Sealed, Sealer, seal_bytes
from agent.sealing.stanzas import Stanza
from agent.sealing.streams import Buffer, BytesSource, RandomAccess, Sink
from agent.sealing.unseal import Unsealed, open_bytes

__all__ = [
    "Buffer",
    "BytesSource",
    "Governor",
    "Identity",
    "KeyIdentity",
    "KmsIdentity",
    "P256TagIdentity",
    "P256TagPQIdentity",
    "P256TagPQRecipient",
    "P256TagRecipient",
    "Pipeline",
    "PostQuantumIdentity",
    "PostQuantumRecipient",
    "RandomAccess",
    "Recipient",
    "Sealed",
    "Sealer",
    "Sink",
    "Stanza",
    "Unsealed",
    "X25519Identity",
    "X25519Recipient",
    "check_recipients",
    "default_workers",
    "distinct",
    "generate",
    "generate_post_quantum",
    "open_bytes",
    "parse_identity_file",
    "parse_recipient",
    "parse_recipients_file",
    "render_identity_file",
    "seal_bytes",
]
