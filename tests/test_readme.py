"""The README's Python runs as printed, and its two commands are the ones that CI takes from it."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PAGE = "".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs/generating.md").read_text(), re.DOTALL))


def with_the_demo_model(snippet):
    """Names on the Hub stand for the model that ships with the package: tests download nothing."""
    from codegen_fast.demo import demo_model_path

    return re.sub(r'"Salesforce/codegen-[\w-]+"', repr(str(demo_model_path())), snippet)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets_run(snippet, capsys):
    exec(compile(with_the_demo_model(snippet), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_examples_of_the_page_about_generating_run_one_after_another(capsys):
    exec(compile(PAGE, "generating.md", "exec"), {})
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("SessionStats(", "Report(", "Perplexity("))


def test_the_commands_stand_between_the_markers():
    commands = README.split("<!-- commands -->")[1].split("<!-- /commands -->")[0]
    assert re.findall(r"^pip install .*$", commands, re.MULTILINE) == [
        'pip install -c constraints.txt . && codegen-fast generate "def fibonacci(n):"',
        "pip install -c constraints.txt '.[test]' && pytest",
    ]


def test_commands_of_the_docs_are_command_lines():
    """None is run: they name models on the Hub."""
    from codegen_fast.cli.arguments import build_parser

    text = README + (ROOT / "docs/evaluation.md").read_text()
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^codegen-fast .*$", text, re.MULTILINE)]
    assert len(commands) > 12
    for command in commands:
        build_parser("0").parse_args(command[1:])


def test_links_to_files_lead_somewhere():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README + (ROOT / "CONTRIBUTING.md").read_text()):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_paths_named_in_the_docs_exist(name):
    text = (ROOT / name).read_text()
    for path in set(re.findall(r"`((?:csrc|codegen_fast|tests|bench|tools|cmake)/[\w/.]+\.\w+)`", text)):
        assert (ROOT / path).exists(), path
