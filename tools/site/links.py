"""Check that every page, picture and heading to which the built site links exists."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag


class _Page(HTMLParser):
    """Collects a page's links and anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the tag's links and its own name."""
        of = dict(attrs)
        self.anchors.update(name for name in (of.get("id"), of.get("name")) if name)
        self.links += [link for link in (of.get("href") if tag in ("a", "link") else of.get("src"),) if link]


def broken(site: Path) -> list[str]:
    """Return the broken links within a site, one per line; external addresses are not checked."""
    pages = {path: _Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    found = []
    for path, page in pages.items():
        for link in page.links:
            name, anchor = urldefrag(unquote(link))
            if "://" in name or name.startswith(("data:", "mailto:", "//")):
                continue
            target = (path.parent / name).resolve() if name else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                found.append(f"{path.relative_to(site)}: no file {name}")
            elif anchor and target in pages and anchor not in pages[target].anchors:
                found.append(f"{path.relative_to(site)}: no heading {link}")
    return found
