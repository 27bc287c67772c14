"""Removing a folder that a program has had: whatever it made there, however deep and however locked."""

from __future__ import annotations

import os
import stat


def remove(folder: str) -> None:
    """Removes `folder` and all in it. Follows no link, and needs no path longer than two names: trees are flattened.

    What cannot be removed (a file system gone read-only) is left, without an error: programs must not stop a run.
    """
    try:
        os.chmod(folder, 0o700)
        pending = [folder]
        moved = 0
        unused = os.urandom(8).hex()  # a program must not be able to put something in the way
        while pending:
            current = pending.pop()
            for entry in list(os.scandir(current)):
                if not stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode):
                    os.unlink(entry.path)
                    continue
                os.chmod(entry.path, 0o700)  # a locked folder can be neither read nor renamed
                moved += 1
                flat = os.path.join(folder, f"{unused}-{moved}")
                if os.path.dirname(entry.path) != folder:
                    os.rename(entry.path, flat)
                    pending.append(flat)
                else:
                    pending.append(entry.path)
            if current != folder:
                os.rmdir(current)
        os.rmdir(folder)
    except OSError:
        pass
