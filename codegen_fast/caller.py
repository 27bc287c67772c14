"""Where in somebody's program a call of this package stands."""
from __future__ import annotations

import sys

_PACKAGE = __name__.partition(".")[0]


def outside() -> int:
    """The stacklevel for warnings.warn, called by whoever calls this, of the first frame outside of the package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        level, frame = level + 1, frame.f_back
    return level
