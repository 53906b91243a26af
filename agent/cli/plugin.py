"""`age-plugin-impoundkms`: started by stock age for an identity whose private half is in AWS KMS. Not a verb."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from agent.cli.output import complain

if TYPE_CHECKING:
    from collections.abc import Sequence

_USAGE = """\
age-plugin-impoundkms opens what is sealed to a key in AWS KMS. age starts it by itself:

  impound recipient from-kms ARN --identity-file kms.key
  age -d -i kms.key object.zst.age | zstd -d

AWS credentials come from where any AWS tool takes them (AWS_PROFILE, a role, ...)."""

_FLAG = "--age-plugin="


def main(arguments: Sequence[str] | None = None) -> int:
    """One run of a state machine on standard input and output. Exit code 0 when it came to its end."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given in (["-h"], ["--help"]):
        sys.stdout.write(_USAGE + "\n")
        return 0
    from agent.sealing import ageplugin

    machines = [argument.removeprefix(_FLAG) for argument in given if argument.startswith(_FLAG)]
    if len(given) != 1 or len(machines) != 1:
        sys.stderr.write(_USAGE + "\n")
        return 2
    if machines[0] != ageplugin.STATE_MACHINE:
        complain(f"the plugin only opens ({ageplugin.STATE_MACHINE}): seal with the recipient age1tag1… itself")
        return 2
    try:
        ageplugin.serve(sys.stdin.buffer, sys.stdout.buffer)
    except ageplugin.ProtocolError as error:
        complain(str(error))
        return 1
    except (KeyboardInterrupt, BrokenPipeError):
        return 1  # age interrupts a plugin when it has what it wants
    except Exception as error:  # noqa: BLE001 - the last word to a person is one line, whatever happened
        complain(f"a fault of impound itself: {type(error).__name__}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
