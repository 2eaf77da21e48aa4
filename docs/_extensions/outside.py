"""A hook of MkDocs: pages may link to files of the checkout that are not in ``docs/``, as they do where it is browsed.

What a page shows of ``benchmarks/results`` becomes a part of the site, and each program of ``examples/`` a page. A file
that the site holds as a page (README, CONTRIBUTING, CHANGELOG) is that page.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md",
         "examples/README.md": "examples.md"}
PROGRAMS = {".py": "python", ".cpp": "cpp"}
INCLUDED = re.compile(r'--8<-- "(?P<path>[^"]+)"')
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)(?P<path>[^)#\s]+)(?=[)#])")


def on_files(files: Any, config: Any) -> Any:
    """Add the results and the examples to the site's files."""
    from mkdocs.structure.files import File

    for path in sorted((ROOT / "benchmarks" / "results").iterdir()):
        if path.suffix in (".json", ".png"):
            files.append(File(path.relative_to(ROOT).as_posix(), str(ROOT), config.site_dir, config.use_directory_urls))
    for path in sorted((ROOT / "examples").rglob("*.*")):
        if path.suffix in PROGRAMS:
            program = path.read_text(encoding="utf-8")
            files.append(File.generated(config, path.relative_to(ROOT).with_suffix(".md").as_posix(),
                                        content=f"# {path.name}\n\n```{PROGRAMS[path.suffix]}\n{program}```\n"))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put in the file that a page includes, and let links to the checkout lead to where the site has what they name."""
    source = page.file.src_uri
    folder = posixpath.join("docs", posixpath.dirname(source))
    included = INCLUDED.fullmatch(markdown.strip())
    if included:
        path = included["path"]
        folder, markdown = posixpath.dirname(path), (ROOT / path).read_text(encoding="utf-8")
    parts = FENCED.split(markdown)  # prose and fenced blocks in turn
    parts[::2] = [LINK.sub(lambda match: _in_site(match["path"], folder, source), prose) for prose in parts[::2]]
    return "".join(parts)


def _in_site(link: str, folder: str, source: str) -> str:
    path = posixpath.normpath(posixpath.join(folder, link))
    if path.startswith("examples/"):
        path = re.sub(rf"({'|'.join(map(re.escape, PROGRAMS))})$", ".md", path)
    target = PAGES.get(path, path.removeprefix("docs/"))
    return posixpath.relpath(target, posixpath.dirname(source) or ".")
