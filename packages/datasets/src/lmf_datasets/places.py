"""Where data sets are published, and the reasons why some cannot be had."""

from __future__ import annotations

from lmf import Remote

LLAMA_FACTORY = "https://github.com/hiyouga/LLaMA-Factory"
LMFLOW = "https://github.com/OptimalScale/LMFlow"
ONLY_LMFLOW = (
    "it was published only on LMFlow's own server, over plain http and without a checksum, so nobody can tell "
    "whether what comes from there is what was meant."
)


def card(repository: str) -> str:
    """Return the page of a data set on the hub."""
    return f"https://huggingface.co/datasets/{repository}"


def hub(
    repository: str, file: str, revision: str = "main", *, sha256: str | None = None, bytes: int | None = None
) -> Remote:
    """Return a file of a data set on the hub; ``main`` where no revision was published with a checksum."""
    url = f"{card(repository)}/resolve/{revision}/{file}"
    return Remote(url=url, path=file.removeprefix("data/").replace("/", "-"), sha256=sha256, bytes=bytes)


def github(repository: str, revision: str, file: str, *, sha256: str | None = None, bytes: int | None = None) -> Remote:
    """Return a file of a repository on GitHub, at a commit or a tag."""
    url = f"https://raw.githubusercontent.com/{repository}/{revision}/{file}"
    return Remote(url=url, path=file.rpartition("/")[2], sha256=sha256, bytes=bytes)


def llama_factory(file: str) -> Remote:
    """Return a file that LLaMA-Factory had in its repository, at its version 0.5.0."""
    return github("hiyouga/LLaMA-Factory", "v0.5.0", f"data/{file}")
