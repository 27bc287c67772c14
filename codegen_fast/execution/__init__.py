"""Generated programs, run in sandboxes: processes of their own, with limits, without network, unable to harm the rest."""

from __future__ import annotations

from .executor import Executor
from .isolation import describe_isolation
from .limits import Limits, Outcome

__all__ = ["Executor", "Limits", "Outcome", "describe_isolation"]
