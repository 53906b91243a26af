"""Is this bucket fit for evidence? What its settings say (`settings`, `denials`), what lies in it (`contents`), and
what the host's authority can do, proved by trying (`tries`). Each answer is a `Row`; nothing is changed or mended.
"""

from __future__ import annotations
