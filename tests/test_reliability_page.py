"""docs/reliability.md is what its records say."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from reliability import page  # noqa: E402


def test_the_page_is_rendered_from_the_records():
    assert page.PAGE.read_text() == page.render(), "run python -m reliability.page"
