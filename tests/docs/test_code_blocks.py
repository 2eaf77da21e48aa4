"""Every block of Python in the README and the documentation runs: the blocks of a page in order, in one namespace.

A block whose title begins with one of ``ELSEWHERE`` needs what a test has not, and is compiled only.
"""

import re
from pathlib import Path

import pytest

from leni_kernels.common import extension

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "examples" / "README.md"]
ELSEWHERE = ("on a GPU", "with torchrun")
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"python", "sh", "text", ""}


def blocks(page):
    """Of a page: the line, the language, the title and the code of every fenced block."""
    text = page.read_text(encoding="utf-8")
    for fence in FENCE.finditer(text):
        language, _, rest = fence["info"].strip().partition(" ")
        title = re.fullmatch(r'title="([^"]*)"', rest)
        yield text.count("\n", 0, fence.start()) + 1, language, title[1] if title else "", fence["code"]


def name(page):
    return page.relative_to(ROOT).as_posix()


WITH_PYTHON = [page for page in PAGES if any(language == "python" for _, language, _, _ in blocks(page))]


@pytest.mark.skipif(extension.why_missing is not None, reason=f"pages show the CPU kernels: {extension.why_missing}")
@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for line, language, title, source in blocks(page):
        if language == "python":
            # Lines as the page counts them, for tracebacks.
            code = compile("\n" * line + source, str(page), "exec")
            if not title.startswith(ELSEWHERE):
                exec(code, namespace)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_are_of_a_known_kind(page):
    """A block in a language that is written in some other way would be passed over."""
    for line, language, title, _ in blocks(page):
        assert language in LANGUAGES, f"{name(page)}:{line}"
        assert not title or title.startswith(ELSEWHERE), f"{name(page)}:{line}"
    text = page.read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(list(blocks(page))), "a fence that is indented, or not closed"


def test_there_is_something_to_run():
    assert len(WITH_PYTHON) > 5
