"""Files by a stranger's hand: damaged in every way that comes to mind, and read under watch.

TITLE and section() are this part of docs/reliability.md.
"""

TITLE = "Hostile files"
