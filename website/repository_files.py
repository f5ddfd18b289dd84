"""A hook of MkDocs: files of the repository outside ``docs`` that pages link to, notebooks, changelog.

Pages are read in the repository, too, so they link to its files as they lie there. On the site a file of text
becomes a page that shows it, anything else is copied; a link to what is not there ends a strict build.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
# Files of the repository that are pages by themselves, with their place in the site.
PAGES = {"CHANGELOG.md": "about/changelog.md", "CONTRIBUTING.md": "about/contributing.md"}
_LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")
_LANGUAGES = {
    ".py": "python",
    ".c": "c",
    ".mjs": "js",
    ".js": "js",
    ".html": "html",
    ".css": "css",
    ".json": "json",
    ".toml": "toml",
    ".yml": "yaml",
}


def outside(source: str, path: str) -> str | None:
    """Return the file of the repository that a page's link leads to, if it is outside ``docs``."""
    # Notebooks are written where they lie.
    folder = "examples" if source.endswith(".ipynb") else "docs"
    target = posixpath.normpath(posixpath.join(folder, posixpath.dirname(source), path))
    return None if target == "docs" or target.startswith("docs/") else target


def place_of(path: str) -> str:
    """Return where a file of the repository is on the site."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("examples/notebooks/"):
        return path.removeprefix("examples/")
    text = Path(path).suffix in {".txt", ".md", *_LANGUAGES}
    return f"repository/{path}.md" if text else f"repository/{path}"


def page_of(path: str, text: str) -> str:
    """Return a page that shows a file."""
    fence = "`" * 6
    return f"# {path}\n\n{fence}{_LANGUAGES.get(Path(path).suffix, 'text')}\n{text}\n{fence}\n"


def from_root(text: str, place: str) -> str:
    """Return a page that lay in the repository's root, with links as from its place under ``docs``."""

    def moved(found: re.Match[str]) -> str:
        path = found["path"]
        if (ROOT / path).is_dir():
            path = f"{path}/README.md"
        return posixpath.relpath(path, posixpath.join("docs", posixpath.dirname(place))) + (
            found["anchor"] or ""
        )

    return _LINK.sub(moved, text)


def notebooks() -> list[Path]:
    """Return the notebooks among the examples, in order."""
    return sorted((ROOT / "examples/notebooks").glob("*.ipynb"))


def on_config(config: Any) -> Any:
    """List the notebooks that are there."""
    found = [f"notebooks/{each.name}" for each in notebooks()]
    for entry in list(config.nav or []):
        if "Notebooks" in entry:
            entry["Notebooks"] = found
            if not found:
                config.nav.remove(entry)
    return config


def written_in(notebook: Path) -> str:
    """Return what the cells of a notebook say that are text."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def _linked(files: Files) -> Iterator[str]:
    pages = {each.src_uri: each.content_string for each in files.documentation_pages()}
    pages |= {f"notebooks/{each.name}": written_in(each) for each in notebooks()}
    for source, text in pages.items():
        for found in _LINK.finditer(text):
            path = outside(source, found["path"])
            if path is not None and (ROOT / path).is_file():
                yield path


# Before the plugin that makes pages of notebooks.
@event_priority(100)
def on_files(files: Files, *, config: Any) -> Files:
    """Add notebooks, the pages that lie in the root, and all that pages link to."""
    for path, place in PAGES.items():
        files.append(
            File.generated(config, place, content=from_root((ROOT / path).read_text("utf-8"), place))
        )
    for each in notebooks():
        place = f"notebooks/{each.name}"
        files.append(File(place, str(ROOT / "examples"), config.site_dir, config.use_directory_urls))
    for path in sorted(set(_linked(files))):
        place = place_of(path)
        if files.get_file_from_path(place) is not None:
            continue
        if place.endswith(".md"):
            shown = page_of(path, (ROOT / path).read_text("utf-8"))
            files.append(File.generated(config, place, content=shown))
        else:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn links out of ``docs`` into links to where those files are on the site."""
    source = page.file.src_uri

    def replaced(found: re.Match[str]) -> str:
        path = outside(source, found["path"])
        if path is None or not (ROOT / path).is_file():
            return found[0]
        return posixpath.relpath(place_of(path), posixpath.dirname(source)) + (found["anchor"] or "")

    return _LINK.sub(replaced, markdown)
