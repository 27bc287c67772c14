"""docs/reliability.md is what its records say, and they say nothing of where files lay on one machine."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from reliability import page, record  # noqa: E402


def test_the_page_is_rendered_from_the_records():
    assert page.PAGE.read_text() == page.render(), "run python -m reliability.page"


def test_a_recorded_command_names_no_folder_of_this_machine(monkeypatch, tmp_path):
    kept = tmp_path / "cases of today.jsonl"
    monkeypatch.setattr(sys, "argv", ["/somewhere/reliability/sizes.py", "--save", "--keep", str(kept), "2B:bin"])
    assert record.command_line() == "python -m reliability.sizes --save --keep 'cases of today.jsonl' 2B:bin"
