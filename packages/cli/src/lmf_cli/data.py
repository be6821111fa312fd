"""``lmf data``: what data hold, what a run would learn from them, and data made of data."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import typing
from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from lmf import ConfigError, Message, Plugins, RunSettings, config
from lmf.conversation import ROLES, Conversation, Preference, Ranking, Unpaired

from .catalogue import catalogue
from .flags import HELP, Columns, Format
from .groups import Command, Group, application
from .listings import Json, table
from .rewriting import rewriting

if TYPE_CHECKING:
    from lmf.data.originals import Original, Originals
    from lmf.encoding.fit import Survey

_RUN = RunSettings(model="", data=())
_POLICIES = list(typing.get_args(typing.get_type_hints(RunSettings)["on_overflow"]))

Data = Annotated[list[str], typer.Argument(metavar="DATA...", help="Files, folders, data sets: what --data takes.")]
Model = Annotated[str | None, typer.Option(help="Also encode the data as a run with this model would.")]
Template = Annotated[str, typer.Option(help=HELP["template"])]
MaxTokens = Annotated[int, typer.Option(help=HELP["max_tokens"])]
OnOverflow = Annotated[
    str,
    typer.Option(metavar="|".join(_POLICIES), autocompletion=lambda: _POLICIES, help=HELP["on_overflow"]),
]
MaxDropped = Annotated[float, typer.Option(help=HELP["max_dropped"])]


def data_group(plugins: Plugins) -> typer.Typer:
    """Return the commands ``lmf data ...``."""
    app = application(cls=Group, no_args_is_help=True)

    @app.command(cls=Command)
    def check(
        data: Data,
        format: Format = None,
        columns: Columns = None,
        model: Model = None,
        template: Template = "auto",
        max_tokens: MaxTokens = _RUN.max_tokens,
        on_overflow: OnOverflow = _RUN.on_overflow,
        max_dropped: MaxDropped = _RUN.max_dropped,
        json: Json = False,
    ) -> None:
        """Read data whole and tell what is wrong with them; exit with 4 if something is."""
        settings = _run_settings(
            model, template=template, max_tokens=max_tokens, on_overflow=on_overflow, max_dropped=max_dropped
        )
        found = _read(data, plugins, format, columns)
        survey = _survey(found.records, settings, plugins) if model else None
        if json:
            files = [
                {"file": str(each.path), "format": each.format, "records": each.records, "sha256": each.sha256}
                for each in found.sources
            ]
            facts = dataclasses.asdict(survey) if survey else None
            print(jsonlib.dumps({"files": files, "records": len(found.records), "encoded": facts}, indent=2))
            return
        table(["file", "format", "records"], [[str(s.path), s.format, f"{s.records:,}"] for s in found.sources])
        if survey:
            print()
            table(["", ""], [[name, value] for name, value in survey.rows()])
        print(f"\n{_counted(len(found.records), 'record')}, nothing wrong")

    @app.command(cls=Command)
    def preview(
        data: Data,
        model: Annotated[str, typer.Option(help=HELP["model"])],
        template: Template = "auto",
        format: Format = None,
        columns: Columns = None,
        records: Annotated[int, typer.Option("--records", "-n", help="How many records to show, from the first.")] = 3,
        tokens: Annotated[bool, typer.Option("--tokens", help="A line for each token, with its id.")] = False,
    ) -> None:
        """Show what a run with a model makes of the first records, and what of it is learned."""
        if records < 1:
            raise ConfigError(f"--records is {records}; it must be at least 1.")
        found = _read(data, plugins, format, columns).records[:records]
        from . import views
        from .tokens import encoded, open_encoder, spelled

        encoder = open_encoder(model, template, plugins, found)
        on = views.console()
        if not views.coloured(on):
            print(views.KEY)
        for record in found:
            examples = list(encoded([record], encoder))
            for number, example in enumerate(examples, 1):
                several = f", example {number} of {len(examples)}" if len(examples) > 1 else ""
                learned = f"{len(example.ids):,} tokens, {example.trained:,} learned"
                print(f"\n{example.where}: format {record.format.name}{several}, {learned}")
                (views.show_tokens if tokens else views.show)(spelled(example, encoder), on)

    @app.command(cls=Command)
    def stats(
        data: Data,
        format: Format = None,
        columns: Columns = None,
        model: Model = None,
        template: Template = "auto",
        json: Json = False,
    ) -> None:
        """Count records, roles, turns and characters, and with a model tokens."""
        _run_settings(model, template=template)
        found = _read(data, plugins, format, columns)
        counts = _counts(found)
        if model:
            counts["tokens"], counts["learned_tokens"] = _token_counts(found.records, model, template, plugins)
        if json:
            print(jsonlib.dumps(counts, indent=2))
            return
        rows = [["records", f"{counts['records']:,}"]]
        rows += [[f"format {name}", f"{number:,}"] for name, number in counts["formats"].items()]
        for what in ("turns", "characters", "tokens", "learned_tokens"):
            if counts.get(what):
                rows.append([_EACH[what], ", ".join(f"{at} {count:,}" for at, count in counts[what].items())])
        table(["", ""], rows)
        if counts["roles"]:
            print()
            table(
                ["role", "messages", "characters"],
                [[role, f"{each['messages']:,}", f"{each['characters']:,}"] for role, each in counts["roles"].items()],
            )

    @app.command(cls=Command)
    def count(data: Data, json: Json = False) -> None:
        """Count the records of data, whatever they hold."""
        from lmf.data.originals import read_objects

        found = read_objects(data, plugins)
        if json:
            rows = [{"file": str(source.path), "records": source.records} for source in found.sources]
            print(jsonlib.dumps({"files": rows, "records": len(found.records)}, indent=2))
            return
        if len(found.sources) > 1:
            table(["file", "records"], [[str(source.path), f"{source.records:,}"] for source in found.sources])
        print(len(found.records))

    rewriting(app, plugins)
    catalogue(app, plugins)
    return app


def _read(data: Sequence[str], plugins: Plugins, format: str | None, columns: Sequence[str] | None) -> Originals:
    from lmf.data.mixture import columns_of
    from lmf.data.originals import read_originals

    return read_originals(data, plugins, format, columns_of(columns or (), plugins))


def _run_settings(model: str | None, **given: Any) -> RunSettings:
    """Return the settings of a run that would encode the data so.

    Raises:
        ConfigError: One is out of its bounds, or is given where no model is.
    """
    settings = config.make(RunSettings, {"model": "none" if model is None else model, "data": ("none",), **given})
    for name, value in given.items():
        if model is None and value != getattr(_RUN, name):
            raise ConfigError(f"{config.flag(name)} {value} needs --model: without its tokenizer nothing is encoded.")
    return settings


def _survey(records: Sequence[Original], settings: RunSettings, plugins: Plugins) -> Survey | None:
    """Encode records and return the account of it; of prompts there is none, for nothing of them is learned."""
    from .tokens import encoded, open_encoder

    encoder = open_encoder(settings.model, settings.template, plugins, records)
    from lmf.encoding.fit import fit

    examples = encoded(records, encoder)
    if all(record.format.data == "prompt" for record in records):
        deque(examples, maxlen=0)
        return None
    texts = all(record.format.data == "text" for record in records)
    _, survey = fit(
        examples,
        settings.max_tokens,
        "split" if texts else settings.on_overflow,
        name="data",
        records=len(records),
        ends=encoder.end_ids,
        bos=encoder.bos_id,
        most_dropped=settings.max_dropped,
    )
    return survey


def _token_counts(
    records: Sequence[Original], model: str, template: str, plugins: Plugins
) -> tuple[dict[str, int], dict[str, int]]:
    """Return the percentiles of the tokens of an example, all of them and those that are learned."""
    from lmf.encoding.fit import percentiles

    from .tokens import encoded, open_encoder

    encoder = open_encoder(model, template, plugins, records)
    counts = [(len(example.ids), example.trained) for example in encoded(records, encoder)]
    return percentiles([tokens for tokens, _ in counts]), percentiles([learned for _, learned in counts])


def _counts(found: Originals) -> dict[str, Any]:
    """Count what can be counted without a tokenizer."""
    from lmf.data.rewrite import conversations
    from lmf.encoding.fit import percentiles

    spoken = [_messages(record.data) for record in found.records]
    messages: Counter[str] = Counter(message.role for each in spoken for message in each)
    characters: Counter[str] = Counter()
    for message in (message for each in spoken for message in each):
        characters[message.role] += _length(message)
    sizes = [
        len(record.data) if isinstance(record.data, str) else sum(map(_length, each))
        for record, each in zip(found.records, spoken, strict=True)
    ]
    turns = [len(talk.messages) for record in found.records for _, talk in conversations(record.data)]
    return {
        "records": len(found.records),
        "formats": dict(Counter(record.format.name for record in found.records).most_common()),
        "roles": {
            role: {"messages": messages[role], "characters": characters[role]} for role in ROLES if messages[role]
        },
        "turns": percentiles(turns),
        "characters": percentiles(sizes),
    }


def _messages(data: Any) -> tuple[Message, ...]:
    """Return every message of a record once."""
    match data:
        case Conversation():
            return data.messages
        case Preference():
            return (*data.prompt.messages, *data.chosen, *data.rejected)
        case Unpaired():
            return data.conversation.messages
        case Ranking():
            return (*data.prompt.messages, *(Message("assistant", reply) for reply in data.replies))
    return ()


def _length(message: Message) -> int:
    """Return the characters of a message, its calls as JSON."""
    calls = sum(len(jsonlib.dumps([call.name, dict(call.arguments)], ensure_ascii=False)) for call in message.calls)
    return len(message.content) + len(message.reasoning) + calls


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


_EACH = {
    "turns": "messages in a conversation",
    "characters": "characters in a record",
    "tokens": "tokens in an example",
    "learned_tokens": "of them learned",
}
