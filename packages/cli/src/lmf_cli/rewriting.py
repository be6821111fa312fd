"""``lmf data convert``, ``split``, ``sample``, ``shuffle`` and ``merge``: data made of data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any

import typer
from lmf import ConfigError, Plugins

from .flags import Columns, Format
from .groups import Command
from .saving import check_outputs, save

if TYPE_CHECKING:
    from lmf.data.originals import Original

In = Annotated[str, typer.Argument(metavar="DATA", help="A file, folder or data set; - is standard input.")]
Ins = Annotated[list[str], typer.Argument(metavar="DATA...", help="Files, folders or data sets, in order.")]
Out = Annotated[str, typer.Argument(metavar="OUT", help="File to write; - is standard output.")]
Outs = Annotated[list[str], typer.Argument(metavar="OUT...", help="Files to write, at least two.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]
Seed = Annotated[int, typer.Option(help="Seed of the random choice.")]
To = Annotated[str | None, typer.Option(help="Data format to write; by default records stay as they are.")]
Lines = Annotated[bool, typer.Option("--lines", help="Make a record of each line of a text; blank ones are left out.")]
Prompt = Annotated[str | None, typer.Option(help="What to ask: a text in which {input} stands for the input.")]
EndMark = Annotated[str | None, typer.Option(help="What to put behind each text, output or completion.")]
Parts = Annotated[
    list[str] | None, typer.Option("--part", help="What each file but the first gets: a share (0.1) or a number (200).")
]
Amount = Annotated[str, typer.Option("--records", "-n", help="How many: a number (100) or a share (0.1).")]


def rewriting(app: typer.Typer, plugins: Plugins) -> None:
    """Add the commands to an application."""

    @app.command(cls=Command)
    def convert(
        data: In,
        out: Out,
        to: To = None,
        format: Format = None,
        columns: Columns = None,
        lines: Lines = False,
        prompt: Prompt = None,
        end_mark: EndMark = None,
        force: Force = False,
    ) -> None:
        """Write data in another kind of file, in another format, or with marks and prompts around its texts."""
        from lmf.data.mixture import columns_of
        from lmf.data.originals import read_objects, read_originals
        from lmf.data.rewrite import changed, converted

        if prompt is not None and prompt.count("{input}") != 1:
            raise ConfigError(f"--prompt is {prompt!r}; it must hold {{input}} once.")
        if end_mark == "":
            raise ConfigError("--end-mark is empty.")
        form = plugins.formats[to] if to else None
        named = columns_of(columns or (), plugins)
        check_outputs([out], force)
        if form or format:
            found = read_originals([data], plugins, format, named)
        else:
            found = read_objects([data], plugins, named)
        records = _edited(found.records, lines, prompt, end_mark)
        if form:
            save({out: changed(records, lambda each: converted(each, form))})
        else:
            save({out: [each.object for each in records]})

    @app.command(cls=Command)
    def split(
        data: In,
        outs: Outs,
        part: Parts = None,
        seed: Seed = 0,
        force: Force = False,
    ) -> None:
        """Part the records of data at random; the first file gets what the others leave."""
        from lmf.data.rewrite import parted

        if len(outs) < 2:
            raise ConfigError("split needs at least two files to write.")
        if part and len(part) not in (1, len(outs) - 1):
            raise ConfigError(
                f"--part is given {len(part)} times for {len(outs)} files; give it once, or {len(outs) - 1} times: "
                "the first file gets what the others leave."
            )
        _check_seed(seed)
        wanted = [_amount("--part", text) for text in part or ()]
        check_outputs(outs, force)
        records = _objects([data], plugins)
        sizes = _sizes(outs, wanted * (len(outs) - 1) if len(wanted) == 1 else wanted, len(records))
        save(dict(zip(outs, parted(records, sizes, seed), strict=True)))

    @app.command(cls=Command)
    def sample(
        data: In,
        out: Out,
        records: Amount,
        seed: Seed = 0,
        force: Force = False,
    ) -> None:
        """Draw records at random; they keep their order."""
        from lmf.data.rewrite import parted, sizes_of

        wanted = _amount("--records", records)
        _check_seed(seed)
        check_outputs([out], force)
        found = _objects([data], plugins)
        count = wanted if isinstance(wanted, int) else sizes_of(len(found), [wanted, 1 - wanted])[0]
        if count > len(found):
            raise ConfigError(f"--records is {count}; {data} has {len(found):,} records.")
        if not count:
            raise ConfigError(f"--records is {records}; of {len(found):,} records that is none.")
        save({out: parted(found, [count, len(found) - count], seed)[0]})

    @app.command(cls=Command)
    def shuffle(data: In, out: Out, seed: Seed = 0, force: Force = False) -> None:
        """Put the records of data into an order that the seed chooses."""
        from lmf.data.rewrite import shuffled

        _check_seed(seed)
        check_outputs([out], force)
        save({out: shuffled(_objects([data], plugins), seed)})

    @app.command(cls=Command)
    def merge(data: Ins, out: Out, force: Force = False) -> None:
        """Write several data into one file, in order."""
        check_outputs([out], force)
        save({out: _objects(data, plugins)})


def _objects(data: Sequence[str], plugins: Plugins) -> list[dict[str, Any]]:
    """Read records as they stand."""
    from lmf.data.originals import read_objects

    return [record.object for record in read_objects(data, plugins).records]


def _edited(records: list[Original], lines: bool, prompt: str | None, end_mark: str | None) -> list[Original]:
    """Return records with their texts parted, prompted and marked, as far as that is asked for."""
    from lmf.data.rewrite import changed, end_marked, lines_of, prompted

    if lines:
        parts = changed(records, lambda each: [_with(each, line) for line in lines_of(each)])
        records = [record for part in parts for record in part]
    if prompt is not None:
        records = changed(records, lambda each: _with(each, prompted(each.object, prompt)))
    if end_mark is not None:
        records = changed(records, lambda each: _with(each, end_marked(each.object, end_mark)))
    return records


def _with(record: Original, changed: dict[str, Any]) -> Original:
    """Return a record with another object, and what that holds."""
    from lmf.data.originals import OBJECT, Original

    data = changed if record.format is OBJECT else record.format.read(changed)
    return Original(record.where, changed, record.format, data)


def _amount(flag: str, text: str) -> int | Fraction:
    """Return a number of records, or a share of them."""
    if re.fullmatch(r"[0-9]+", text) and int(text):
        return int(text)
    if re.fullmatch(r"0?\.[0-9]+", text) and Fraction(text):
        return Fraction(text)
    raise ConfigError(f"{flag} is {text!r}; it must be a number of records from 1, or a share between 0 and 1.")


def _sizes(outs: Sequence[str], wanted: Sequence[int | Fraction], count: int) -> list[int]:
    """Return how many records each file gets; nobody gets none."""
    from lmf.data.rewrite import sizes_of

    shares = [Fraction(each, count) if isinstance(each, int) else each for each in wanted]
    shares = [1 - sum(shares), *shares] if wanted else [Fraction(1, len(outs))] * len(outs)
    if shares[0] < 0:
        raise ConfigError(f"--part asks for more than the {count:,} records that there are.")
    sizes = sizes_of(count, shares)
    if 0 in sizes:
        raise ConfigError(f"{outs[sizes.index(0)]} would get none of the {count:,} records; choose other parts.")
    return sizes


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ConfigError(f"--seed is {seed}; it must be at least 0.")
