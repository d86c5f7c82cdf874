"""The documentation site: no page is forgotten, no link leads nowhere."""

from __future__ import annotations

import re

import pytest

from tools.site.links import broken
from tools.site.pages import MODULES, REFERENCES, ROOT, commands, public, write


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The Markdown of the site."""
    folder = tmp_path_factory.mktemp("site") / "pages"
    write(folder)
    return folder


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page(pages) -> None:
    listed = re.findall(r": ([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.relative_to(pages).as_posix() for path in pages.rglob("*.md"))


def test_every_public_name_is_in_the_reference_once() -> None:
    placed = [name for names in REFERENCES.values() for name in names.split()]
    assert sorted(placed) == sorted(public())
    assert set(MODULES) <= {path.stem for path in (ROOT / "densevl").iterdir()}


def test_every_command_is_in_the_reference() -> None:
    text = commands()
    for command in ("densevl segment", "densevl eval run", "densevl models show"):
        assert f"`{command}`\n" in text, command


def test_links_between_pages_and_to_the_root_stay_links(pages) -> None:
    assert "(changelog.md)" in (pages / "index.md").read_text()
    assert "](docs/" not in (pages / "index.md").read_text()
    assert "(security.md)" in (pages / "faq.md").read_text()
    for path in pages.rglob("*.md"):
        assert "](../" not in re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), path.name


def test_commands_are_copied_without_their_prompt(pages) -> None:
    for path in pages.rglob("*.md"):
        for block in re.findall(r"```(?:console|bash)\n(.*?)```", path.read_text(), re.DOTALL):
            lines = block.splitlines()
            assert not all(line.startswith("$ ") for line in lines), path.name
    assert "```bash\ndensevl segment" in (pages / "index.md").read_text()


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="b.html">b</a>', None),
        ('<a href="b.html#there">b</a>', None),
        ('<a href="https://example.org/nothing">b</a>', None),
        ('<a href="c.html">c</a>', "a.html: no file c.html"),
        ('<img src="gone.png">', "a.html: no file gone.png"),
        ('<a href="b.html#gone">b</a>', "a.html: no heading b.html#gone"),
        ('<a href="#gone">b</a>', "a.html: no heading #gone"),
    ],
)
def test_a_link_that_leads_nowhere_is_found(tmp_path, body, fault) -> None:
    (tmp_path / "a.html").write_text(f"<html>{body}</html>")
    (tmp_path / "b.html").write_text('<h2 id="there">There</h2>')
    assert broken(tmp_path) == ([fault] if fault else [])
