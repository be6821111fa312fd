"""Write the text of long_ppl: the prose of this project's own pages, which no model had before they were written.

Usage: long_text.py [FILE]

Code, tables, headings and the marks of Markdown are left out. The file is a snapshot: figures compare only on the same
one, so whoever writes it anew raises the version of the task.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = ROOT / "packages/eval/src/lmf_eval/data/pages.txt"
PAGES = (
    "packages/**/CHANGELOG.md",
    "packages/*/README.md",
    "packages/*/*/README.md",
    "benchmarks/README.md",
    "docs/*.md",
)


def main(file: Path = FILE) -> None:
    """Write the file."""
    pages = [page for pattern in PAGES for page in sorted(ROOT.glob(pattern)) if "data" not in page.parts]
    text = "\n\n".join(filter(None, (prose(page.read_text(encoding="utf-8")) for page in pages)))
    file.write_text(text + "\n", encoding="utf-8")
    print(f"{file}: {len(text.encode()):,} bytes of {len(pages)} pages")


def prose(page: str) -> str:
    """Return the paragraphs of a page of Markdown as plain text."""
    page = re.sub(r"^ *(```|~~~).*?^ *\1", "", page, flags=re.MULTILINE | re.DOTALL)
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", page)
    return "\n\n".join(filter(None, map(_plain, paragraphs)))


def _plain(paragraph: str) -> str:
    text = paragraph.strip()
    if not text or text.startswith(("|", "#", "<", "![", "[!")) or "|--" in text:
        return ""
    text = re.sub(r"^([-*]|\d+\.) ", "", text)
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\*\*|`", "", text)
    return " ".join(text.split())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
