"""The pages say what is there: every command and option is described, every link leads somewhere."""

import argparse
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from rbdtree_cli import main, options

REPO = Path(__file__).parents[1]
HIDDEN = {"-h", "--help"}
PAGES = sorted(
    path
    for path in REPO.rglob("*.md")
    if not any(part.startswith(".") or part == "build" for part in path.relative_to(REPO).parts)
)


def commands(parser: argparse.ArgumentParser, prefix: str = "") -> dict[str, argparse.ArgumentParser]:
    """Every command that can be run, by its full name; aliases are left out."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                name = choice.dest
                below = commands(action.choices[name], f"{prefix}{name} ")
                found |= below or {f"{prefix}{name}": action.choices[name]}
    return found


def aliases(parser: argparse.ArgumentParser) -> list[str]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [name for group in groups for name in group.choices if name not in {c.dest for c in group._choices_actions}]


def option_strings(parser: argparse.ArgumentParser) -> set[str]:
    return {text for action in parser._actions for text in action.option_strings} - HIDDEN


COMMANDS = commands(main.parser())
COMMON = option_strings(options.common())


def sections(text: str) -> dict[str, str]:
    """Text below each heading, up to the next one."""
    parts = re.split(r"^#+ +(.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(scope="module")
def cli_page() -> dict[str, str]:
    return sections((REPO / "docs" / "cli.md").read_text())


def test_there_are_commands() -> None:
    assert {"status", "site check", "init", "sync"} <= COMMANDS.keys()
    assert {"--config", "--format"} <= COMMON


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_described_with_all_its_options(name: str, cli_page: dict[str, str]) -> None:
    section = cli_page.get(f"`rbdtree {name}`")
    assert section, f"docs/cli.md has no section '### `rbdtree {name}`'"
    missing = {text for text in option_strings(COMMANDS[name]) - COMMON if not re.search(rf"`{text}[ `]", section)}
    assert not missing, f"docs/cli.md does not describe {sorted(missing)} of {name}"


def test_the_page_describes_no_option_that_is_not_there(cli_page: dict[str, str]) -> None:
    for name, parser in COMMANDS.items():
        described = set(re.findall(r"^\|.*?`(--[a-z-]+)[ `]", cli_page[f"`rbdtree {name}`"], flags=re.MULTILINE))
        assert described <= option_strings(parser), f"of {name}"


def test_the_options_of_every_command_are_described(cli_page: dict[str, str]) -> None:
    section = cli_page["Options of every command"]
    missing = {text for text in COMMON if not re.search(rf"`{text}[ `]", section)}
    assert not missing


def test_aliases_are_described(cli_page: dict[str, str]) -> None:
    everything = "\n".join(cli_page.values())
    for alias in aliases(main.parser()):
        assert f"`rbdtree {alias}`" in everything


def slug(heading: str) -> str:
    """The anchor that GitHub and others make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#+ +(.*)$", text, flags=re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)|<img[^>]+src=\"([^\"]+)\"", text):
        target = unquote(link[0] or link[1])
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        where = (page.parent / file).resolve() if file else page
        if not where.exists() or (anchor and anchor not in anchors(where)):
            broken.append(target)
    assert not broken, f"{page.relative_to(REPO)}: {broken}"
