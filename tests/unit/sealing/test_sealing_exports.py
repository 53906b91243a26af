"""What the package gives to others is a list that changes on purpose."""

from __future__ import annotations

from agent import sealing


def test_the_exported_names() -> None:
    assert sealing.__all__ == sorted(sealing.__all__)
    assert set(sealing.__all__) == {
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
    }
    assert all(hasattr(sealing, name) for name in sealing.__all__)
