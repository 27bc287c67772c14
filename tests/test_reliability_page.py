"""docs/reliability.md is what its records say."""

from reliability import page


def test_the_page_is_rendered_from_the_records():
    assert page.PAGE.read_text() == page.render(), "run python -m reliability.page"
