"""Every stable error code: which branch of the error tree, what it means, what to do.

This table is the one source: :mod:`events.errors` accepts no other code, and the documentation's
table is generated from it. A code is never renamed or reused once released.
The ``cidr_conflict_*`` names follow the cloud provider's ``InternalError.CidrConflictWith…``.
"""

from __future__ import annotations

from events.codes.code import Code
from events.codes.commands import COMMAND_CODES
from events.codes.local import LOCAL_CODES
from events.codes.running import RUNNING_CODES

__all__ = ["CODES", "Code"]

CODES: dict[str, Code] = {**COMMAND_CODES, **RUNNING_CODES, **LOCAL_CODES}
