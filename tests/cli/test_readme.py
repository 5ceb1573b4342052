"""What README.md and the guides show of the commands is what they print."""

from __future__ import annotations

import importlib.util
import pathlib
import subprocess
import sys
from types import ModuleType

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "docs" / "outputs.py"
SHOWN = {
    "docs/following-a-run.md": ["plan", "doctor", "lr-find", "control", "report"],
    "docs/rules.md": ["batch"],
}


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> ModuleType:
    """`docs/outputs.py`, whose pages are those of `tmp_path`."""
    spec = importlib.util.spec_from_file_location("outputs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "printed", lambda command: f"    $ {command}\n    done\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# A page\n")
    return module


@pytest.mark.processes
def test_the_pages_show_what_the_commands_print() -> None:
    words = [sys.executable, str(SCRIPT), "--check"]
    process = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("page", SHOWN)
def test_each_page_has_its_blocks_with_an_output_in_them(
    outputs: ModuleType, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    monkeypatch.setattr(outputs, "ROOT", ROOT)
    assert ROOT / page in outputs.pages()
    blocks = outputs.blocks(ROOT / page)
    for command in SHOWN[page]:
        of_it = [each["text"] for each in blocks if f"distlr {command} " in f"{each['command']} "]
        assert of_it, f"{page} shows no output of distlr {command}"
        for text in of_it:
            assert "    $ " in text
            assert len(text.split("\n")) > 4, text


def test_the_check_fails_where_no_page_has_a_block(outputs: ModuleType) -> None:
    assert outputs.check() == ["no page shows what `distlr batch` prints", "no page shows what `distlr plan` prints"]


def test_pages_are_written_as_the_check_wants_them_and_only_where_they_differ(
    outputs: ModuleType, tmp_path: pathlib.Path
) -> None:
    guide = tmp_path / "docs" / "guide.md"
    stale = (
        "<!-- output of: distlr plan x -->\n<!-- end -->\n",
        "<!-- output of: distlr batch -->\nold\n<!-- end -->\n",
    )
    guide.write_text("\n".join(stale))
    assert [sentence.split("`")[:2] for sentence in outputs.check()] == [
        ["docs/guide.md does not show what ", "distlr plan x"],
        ["docs/guide.md does not show what ", "distlr batch"],
    ]
    outputs.write()
    assert outputs.check() == []
    assert "    $ distlr batch\n    done\n\n<!-- end -->" in guide.read_text()
    assert (tmp_path / "README.md").read_text() == "# A page\n"


def test_a_block_that_does_not_end_is_an_error(outputs: ModuleType, tmp_path: pathlib.Path) -> None:
    (tmp_path / "README.md").write_text("<!-- output of: a -->\n<!-- output of: b -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match=r"README.md: a block does not end"):
        outputs.check()
