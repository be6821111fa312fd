"""``lmf data list``, ``info`` and ``download``: the data sets that have a name."""

from __future__ import annotations

import json as jsonlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from lmf import DataError, DataSet, LmfError, Plugins, Remote
from lmf.data.cache import about, data_folder, fetch, megabytes, missing

from .groups import Command
from .listings import Json, table

Name = Annotated[str, typer.Argument(help="Name of a data set.")]
Names = Annotated[list[str], typer.Argument(help="Names of data sets.")]
AllowHttp = Annotated[bool, typer.Option("--allow-http", help="Take plain http, which anyone on the way can change.")]


def catalogue(app: typer.Typer, plugins: Plugins) -> None:
    """Add the commands ``list``, ``info`` and ``download`` to an application."""

    @app.command("list", cls=Command)
    def show(json: Json = False) -> None:
        """List the data sets that have a name."""
        found = {plugins.datasets.qualified(each): each for _, each in plugins.datasets.all()}
        short = {name: name if each.name not in plugins.datasets else each.name for name, each in found.items()}
        if json:
            print(jsonlib.dumps([{**_facts(each), "name": short[name]} for name, each in found.items()], indent=2))
            return
        rows = [
            [short[name], each.format or "-", _size(each), _state(each), each.licence, each.summary]
            for name, each in found.items()
        ]
        table(["data set", "format", "MB", "", "licence", "what it is"], rows)

    @app.command(cls=Command)
    def info(name: Name, json: Json = False) -> None:
        """Show where a data set comes from, under which licence, and how its records are read."""
        dataset = plugins.datasets[name]
        if json:
            print(jsonlib.dumps(_facts(dataset), indent=2))
            return
        columns = ", ".join(f"{ours} is called {theirs}" for theirs, ours in dataset.columns.items())
        rows = {
            "data set": dataset.name,
            "what it is": dataset.summary,
            "source": dataset.source,
            "homepage": dataset.homepage,
            "licence": dataset.licence,
            "format": dataset.format,
            "columns": columns,
            "size": f"about {_size(dataset)} MB" if dataset.size else "unknown",
            "state": f"cannot be downloaded: {dataset.unavailable}" if dataset.unavailable else _state(dataset),
            "files": "\n".join(_described(remote) for remote in dataset.remote),
        }
        table(["", ""], [[key, value] for key, value in rows.items() if value])

    @app.command(cls=Command)
    def download(names: Names, allow_http: AllowHttp = False) -> None:
        """Download data sets into the cache; what is there already is not fetched again."""
        datasets = [plugins.datasets[name] for name in names]
        problems = []
        for dataset in datasets:
            try:
                _download(dataset, allow_http)
            except LmfError as error:
                problems.append(error)
        if len(problems) == 1:
            raise problems[0]
        if problems:
            raise DataError("\n".join(map(str, problems)))


def _download(dataset: DataSet, allow_http: bool) -> None:
    if dataset.files:
        print(f"{dataset.name} needs no download: it came with its package")
        return
    if missing(dataset):
        print(f"{dataset.name}: {about(dataset)}", flush=True)
    with _progress() as progress:
        files = fetch(dataset, progress, allow_http=allow_http)
    print(f"{dataset.name} is in {data_folder(dataset)} ({len(files)} file{'s' * (len(files) != 1)})")


@contextmanager
def _progress() -> Iterator[Callable[[Remote], Callable[[int, int | None], None]]]:
    """Show a bar for each file; without a terminal, a line every ten seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        def begin(remote: Remote) -> Callable[[int, int | None], None]:
            task = bars.add_task(remote.path, total=remote.bytes)
            said = time.monotonic()

            def tell(done: int, total: int | None) -> None:
                nonlocal said
                bars.update(task, completed=done, total=total)
                if bars.disable and time.monotonic() - said > 10:
                    said = time.monotonic()
                    console.print(f"{remote.path}: {megabytes(done)} of {megabytes(total) if total else '?'} MB")

            return tell

        yield begin


def _state(dataset: DataSet) -> str:
    if dataset.unavailable:
        return "cannot be downloaded"
    return "to be downloaded" if missing(dataset) else "here"


def _size(dataset: DataSet) -> str:
    return "?" if dataset.size is None else megabytes(dataset.size)


def _described(remote: Remote) -> str:
    check = f"SHA-256 {remote.sha256}" if remote.sha256 else "without a checksum"
    return f"{remote.url} ({check})"


def _facts(dataset: DataSet) -> dict[str, Any]:
    return {
        **{key: getattr(dataset, key) for key in ("name", "summary", "source", "homepage", "licence", "size")},
        **{"format": dataset.format, "columns": dict(dataset.columns), "unavailable": dataset.unavailable},
        "downloaded": not dataset.unavailable and not missing(dataset),
        "files": [{"url": remote.url, "sha256": remote.sha256, "bytes": remote.bytes} for remote in dataset.remote],
    }
