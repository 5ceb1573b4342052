"""The pages: every link leads somewhere, every Python block compiles, every command and option that is shown exists."""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import re
import shlex
import textwrap
from collections.abc import Iterator

import pytest

from distlr.cli.main import parser

ROOT = pathlib.Path(__file__).resolve().parents[2]
GUIDES = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docker/README.md", *GUIDES]
FOLDERS = (".ci", "benchmarks", "distlr", "docker", "docs", "launch", "tests")

FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
SPAN = re.compile(r"(?<!`)`(?P<text>[^`\n]+)`(?!`)")
COMMAND = re.compile(r"^(?:[A-Z_]+=\S* )*(?:distlr|make|python|sbatch|docker|(?:launch|docker)/\S+\.sh)\b(?!/)")
OUTPUT = re.compile(r"<!-- output of: .*?<!-- end -->", re.DOTALL)
PATH = re.compile(rf"(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*")
LAUNCHERS = (
    "launch/supervise.sh",
    "launch/horovodrun.sh",
    "launch/mpirun.sh",
    "launch/tf_config.sh",
    "launch/slurm.sbatch",
)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^    .*$", "", FENCE.sub("", text_of(page)), flags=re.MULTILINE)


@functools.cache
def anchors(page: str) -> frozenset[str]:
    """What GitHub makes of a page's headings."""
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} +(.+?) *$", prose(page), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return frozenset(found)


def trouble_with(target: str, page: str) -> str:
    """Why a link of a page leads nowhere; empty where it does, or is not relative."""
    if re.match(r"[a-z]+:", target):
        return ""
    name, _, anchor = target.partition("#")
    path = (ROOT / page).parent / name if name else ROOT / page
    if not path.exists():
        return f"{page}: there is no {target}"
    relative = os.path.relpath(path.resolve(), ROOT)
    if relative.startswith(".."):
        return f"{page}: {target} is outside of the repository"
    if anchor and anchor not in anchors(relative):
        return f"{page}: {relative} has no heading #{anchor}"
    return ""


def links(page: str) -> list[str]:
    return [found["target"] for found in LINK.finditer(prose(page))]


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    assert [trouble for target in links(page) if (trouble := trouble_with(target, page))] == []


def test_a_link_that_leads_nowhere_is_found() -> None:
    assert trouble_with("docs/nothing.md", "README.md") == "README.md: there is no docs/nothing.md"
    assert (
        trouble_with("rules.md#nothing", "docs/backends.md")
        == "docs/backends.md: docs/rules.md has no heading #nothing"
    )
    assert trouble_with("#nothing", "README.md") == "README.md: README.md has no heading #nothing"
    assert trouble_with("..", "README.md") == "README.md: .. is outside of the repository"
    assert trouble_with("docs/rules.md#what-is-refused-and-what-is-warned-of", "README.md") == ""


def test_the_readme_leads_to_every_guide() -> None:
    assert len(GUIDES) >= 6
    assert [guide for guide in GUIDES if guide not in {target.partition("#")[0] for target in links("README.md")}] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_is_there(page: str) -> None:
    named = [found["text"] for found in SPAN.finditer(prose(page)) if PATH.fullmatch(found["text"])]
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_python_block_compiles() -> None:
    count = 0
    for page in PAGES:
        for found in FENCE.finditer(text_of(page)):
            assert found["language"], f"{page}: a block without a language, which no test looks at"
            if found["language"] == "python":
                count += 1
                compile(textwrap.dedent(found["text"]), f"{page}, block {count}", "exec", dont_inherit=True)
    assert count >= 8


# -- commands ----------------------------------------------------------------------------------------


def commands(page: str) -> Iterator[str]:
    """Each command of a page: the lines of its indented blocks, and after `$ ` where a block shows output."""
    text = FENCE.sub("", text_of(page))
    for shown in OUTPUT.finditer(text):
        yield from re.findall(r"^    \$ (.+)$", shown[0], re.MULTILINE)
    for line in re.findall(r"^    (.+)$", OUTPUT.sub("", text), re.MULTILINE):
        if COMMAND.match(line) or "&&" in line:
            yield line


def parts(command: str) -> Iterator[list[str]]:
    """The words of each command that a line joins by `&&`, without comments and variables."""
    words = shlex.split(command, comments=True)
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        part, words = words[:end], words[end + 1 :]
        while part and re.match(r"[A-Z_]+=", part[0]):
            part = part[1:]
        if part:
            yield part


def trouble_with_words(words: list[str]) -> str:
    """Why a command cannot be right; empty where nothing is known against it."""
    if words[0] == "distlr":
        try:
            parser().parse_args(words[1:])
        except SystemExit as stop:
            return "the parser refuses it" if stop.code else ""
        words = words[2:] if words[1] == "run" else []
    if words[:1] == ["make"]:
        targets = re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE)
        return "".join(f"make has no target {word}" for word in words[1:] if "=" not in word and word not in targets)
    for i, word in enumerate(words):
        if not PATH.fullmatch(word):
            continue
        if not (ROOT / word).exists():
            return f"there is no {word}"
        if i == 0 and not os.access(ROOT / word, os.X_OK):
            return f"{word} cannot be executed"
        if word.endswith(".py"):  # what comes after it are its own options
            known = re.findall(r'"(--[a-z-]+)"', text_of(word))
            return "".join(f"{word} has no option {own}" for own in words[i:] if own[:2] == "--" and own not in known)
    return ""


def test_every_command_that_is_shown_is_one() -> None:
    found = [(page, command, part) for page in PAGES for command in commands(page) for part in parts(command)]
    wrong = [f"{page}: `{command}`: {why}" for page, command, part in found if (why := trouble_with_words(part))]
    assert wrong == []
    shown = {part[1] for _, _, part in found if part[0] == "distlr"}
    assert shown >= {"batch", "plan", "doctor", "lr-find", "run", "control", "report"}
    started = {word for _, _, part in found for word in part}
    assert started >= {*LAUNCHERS, "launch/train.py", "demo", "test"}


def test_commands_that_cannot_be_right_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert trouble_with_words(["distlr", "plan", "--nothing"]) == "the parser refuses it"
    assert trouble_with_words(["make", "nothing"]) == "make has no target nothing"
    assert trouble_with_words(["launch/nothing.sh"]) == "there is no launch/nothing.sh"
    assert trouble_with_words(["launch/train.py", "--nothing"]) == "launch/train.py cannot be executed"
    assert trouble_with_words(["python", "launch/train.py", "--a-b"]) == "launch/train.py has no option --a-b"
    assert (
        trouble_with_words(shlex.split("distlr run -n 2 launch/train.py --c 1")) == "launch/train.py has no option --c"
    )
    assert list(parts("A=1 cd launch && B=2 distlr doctor  # it is")) == [["cd", "launch"], ["distlr", "doctor"]]
    assert capsys.readouterr().err.startswith("distlr: error: ")


def options(whole: argparse.ArgumentParser) -> dict[str, set[str]]:
    """The options of each subcommand, those of its own subcommands among them."""
    found: dict[str, set[str]] = {}
    for action in whole._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inside in action.choices.items():
                found[name] = {text for each in inside._actions for text in each.option_strings}
                found[name] |= {name, *options(inside)}.union(*options(inside).values())
    return found


def test_every_option_in_the_prose_is_one() -> None:
    """`distlr control RUN_DIR set-lr ...` in a sentence is no whole command: its names alone are looked at."""
    known, count = options(parser()), 0
    for page in PAGES:
        for found in SPAN.finditer(prose(page)):
            words = found["text"].split()
            if words[0] == "distlr" and len(words) > 1:
                count += 1
                assert words[1] in known, f"{page}: {found[0]}"
                own = words[2 : words.index("launch/train.py")] if "launch/train.py" in words else words[2:]
                assert {word for word in own if word.startswith("-")} <= known[words[1]], f"{page}: {found[0]}"
    assert count >= 15
