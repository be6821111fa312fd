"""``lmf templates``: what a template writes, what of it is learned, and whether it keeps its promises."""

from __future__ import annotations

import dataclasses
import difflib
import json as jsonlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from lmf import ConfigError, DataError, LmfError, Plugins, Template
from lmf.conversation import Conversation
from lmf.templates.jinja import AnyTemplate, JinjaTemplate

from .groups import Command, Group, application
from .listings import Json, table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .views import Span

BOS, EOS = "<BOS>", "<EOS>"  # what stands for the tokenizer's own tokens where there is no tokenizer
RICHEST = ("a tool call with a system message", "a tool call", "reasoning", "a system message", "several turns")
WHAT = "A template by name, a Jinja file, or a model for its own."

Name = Annotated[str, typer.Argument(metavar="TEMPLATE", help=WHAT)]
Other = Annotated[str, typer.Argument(metavar="OTHER", help="Another one.")]
Model = Annotated[str | None, typer.Option(help="Model with the tokenizer whose tokens the template writes.")]


def template_group(plugins: Plugins) -> typer.Typer:
    """Return the commands ``lmf templates ...``."""
    app = application(cls=Group, no_args_is_help=True)

    @app.command("list", cls=Command)
    def show_all(json: Json = False) -> None:
        """List the templates that have a name, and what each has a place for."""
        found = [_facts(template, package, plugins) for package, template in plugins.templates.all()]
        if json:
            print(jsonlib.dumps(found, indent=2, ensure_ascii=False))
            return
        columns = ["name", "package", "kind", "system", "tools", "reasoning", "a reply ends with"]
        rows = [[*(str(each[key]) for key in columns[:3]), *_places(each), " ".join(each["stop"])] for each in found]
        table(["template", *columns[1:]], rows)

    @app.command(cls=Command)
    def show(
        name: Name,
        jinja: Annotated[
            bool, typer.Option("--jinja", help="Print the Jinja text that is saved with a model, and nothing else.")
        ] = False,
    ) -> None:
        """Show the text of a template, its tokens, and what ends a reply."""
        template, _ = _open(name, plugins)
        if jinja:
            print(template.jinja())
            return
        rows = {
            "template": template.name,
            "package": next((package for package, each in plugins.templates.all() if each is template), "-"),
            "source": template.source,
            "kind": _kind(template),
            "a reply ends with": " ".join(template.stop) or "what the tokenizer of a model says",
            "tokens": " ".join(template.tokens),
        }
        table(["", ""], [[key, value] for key, value in rows.items() if value])
        print()
        if isinstance(template, JinjaTemplate):
            print(template.text)
        else:
            table(["part", "text"], [[key, jsonlib.dumps(text, ensure_ascii=False)] for key, text in _parts(template)])

    @app.command(cls=Command)
    def render(
        name: Name,
        data: Annotated[str | None, typer.Option(help="Data to take the conversation from; a sample if none.")] = None,
        record: Annotated[int, typer.Option(help="Number of the record, from 1.")] = 1,
        model: Model = None,
        tools: Annotated[Path | None, typer.Option(help="JSON file with declarations of tools to add.")] = None,
        json: Annotated[bool, typer.Option("--json", help="Print the pieces as JSON for programs.")] = False,
    ) -> None:
        """Show what a template writes for a conversation, and what of it is learned."""
        declared = _declared(tools) if tools else ()
        where, found = _conversations(data, record, plugins) if data else ("", [])
        template, tokenizer = _open(name, plugins, model, settle=True)
        if not data:
            found = [("", _sample(template))]
        shown: list[tuple[str, list[Span]]] = []
        for what, conversation in found:
            conversation = dataclasses.replace(conversation, tools=(*conversation.tools, *declared))
            try:
                examples = rendered(template, conversation, tokenizer)
            except DataError as error:
                raise DataError(f"{where}: {error}" if where else str(error)) from None
            for number, spans in enumerate(examples, 1):
                several = f"reply {number} of {len(examples)}" if len(examples) > 1 else ""
                shown.append((", ".join(filter(None, (what, several))), spans))
        if json:
            print(jsonlib.dumps([_pieces(what, spans) for what, spans in shown], indent=2, ensure_ascii=False))
            return
        _print(shown)

    @app.command(cls=Command)
    def diff(name: Name, other: Other, model: Model = None) -> None:
        """Compare what two templates write for the same conversations; exit with 1 if they differ."""
        model = model or next((each for each in (name, other) if _is_model(each, plugins)), None)
        first, tokenizer = _open(name, plugins, model, settle=True)
        second, _ = _open(other, plugins, model, settle=True)
        same = differ = 0
        for lines in _differences((name, first), (other, second), tokenizer):
            print(*lines, sep="\n", end="\n" if lines else "")
            same, differ = same + (not lines), differ + bool(lines)
        if differ:
            print(f"{name} and {other} differ for {differ} of the {same + differ} samples that either has a place for")
            raise typer.Exit(1)
        print(
            f"{name} and {other} write the same for the {same} samples that they have a place for, "
            "and the same of it is learned"
        )

    @app.command(cls=Command)
    def test(name: Name, model: Model = None) -> None:
        """Check what every template promises; exit with 1 if this one does not keep it."""
        template, tokenizer = _open(name, plugins, model, settle=True)
        failed = False
        for promise, problem in _checked(template, tokenizer):
            failed |= bool(problem)
            print(f"BAD  {promise}: {problem}" if problem else f"ok   {promise}")
        if failed:
            raise typer.Exit(1)

    return app


def rendered(
    template: AnyTemplate, conversation: Conversation, tokenizer: PreTrainedTokenizerBase | None = None
) -> list[list[Span]]:
    """Render what is learned from a conversation, with control tokens told apart from all other text.

    Raises:
        DataError: The template has no place for something in it.
    """
    from lmf.templates import thoughts
    from lmf.templates.shield import Shield

    from .views import Span

    bos, eos = BOS, EOS
    controls = {*template.tokens}
    if tokenizer:
        bos, eos = str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")
        controls |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    shield = Shield((controls | {bos, eos}) - {""})
    if thoughts.hidden(template, controls):
        conversation = thoughts.apart(conversation)
    guarded, back = shield.guard(conversation) if isinstance(template, JinjaTemplate) else (conversation, {})
    return [
        [
            Span(text.translate(back), bool(i % 2), piece.learned, piece.weight)
            for piece in pieces
            for i, text in enumerate(shield.split(piece.text) if piece.control else [piece.text])
            if text
        ]
        for pieces in template.examples(guarded, bos=bos, eos=eos)
    ]


def _open(
    name: str, plugins: Plugins, model: str | None = None, settle: bool = False
) -> tuple[AnyTemplate, PreTrainedTokenizerBase | None]:
    """Return a template, and the tokenizer of the model that was named with it.

    Args:
        name: A template by name, a Jinja file, or a model.
        plugins: What is installed.
        model: A model for its tokenizer.
        settle: Find out what ends a reply, where a Jinja file does not say it.
    """
    from lmf.sources import find_model
    from lmf.templates.choose import own_template, settled

    from . import tokens

    if _is_model(name, plugins):
        try:
            source = find_model(name, plugins)
        except ConfigError as error:  # here it is no value of a flag
            raise ConfigError(str(error).removeprefix("--model ")) from None
        tokenizer = tokens.open_tokenizer(source)
        template = own_template(tokenizer)
        if template is None:
            known = ", ".join(plugins.templates)
            raise LmfError(f"{name} brings no chat template. Templates with a name: {known}.")
        return template, tokens.open_tokenizer(find_model(model, plugins)) if model else tokenizer
    template = _named(name, plugins)
    tokenizer = tokens.open_tokenizer(find_model(model, plugins)) if model else None
    if settle and isinstance(template, JinjaTemplate) and not template.stop:
        if tokenizer is None:
            raise ConfigError(f"{name} does not say which token ends a reply; name a model that has it: --model MODEL.")
        template = settled(template, tokenizer)
    return template, tokenizer


def _named(name: str, plugins: Plugins) -> AnyTemplate:
    """Return a template by name or of a file."""
    from lmf.templates.choose import named_template

    try:
        template = named_template(name, plugins) if name.endswith(_JINJA) else None
    except LmfError as error:
        raise LmfError(str(error).removeprefix("--template ")) from None
    return template or plugins.templates[name]


def _is_model(name: str, plugins: Plugins) -> bool:
    """Whether a name is that of a model, and not of a template or a file."""
    from lmf.sources import checkpoints

    if name in plugins.templates or name.endswith(_JINJA):
        return False
    return name in checkpoints(plugins) or Path(name).exists() or "/" in name


def _facts(template: AnyTemplate, package: str, plugins: Plugins) -> dict[str, Any]:
    from lmf.templates.traits import traits

    unique = template.name in plugins.templates
    return {
        "name": template.name if unique else f"{package}:{template.name}",
        "package": package,
        "kind": _kind(template),
        **dataclasses.asdict(traits(template)),
        "stop": list(template.stop),
        "tokens": list(template.tokens),
        "source": template.source,
    }


def _places(facts: dict[str, Any]) -> list[str]:
    system = "default" if facts["default_system"] else "yes" if facts["system"] else "-"
    return [system, *("yes" if facts[key] else "-" for key in ("tools", "reasoning"))]


def _kind(template: AnyTemplate) -> str:
    return "Jinja" if isinstance(template, JinjaTemplate) else "fields"


def _parts(template: Template) -> Iterator[tuple[str, str]]:
    """Yield the formats that a template of fields has."""
    for field in dataclasses.fields(template):
        value = getattr(template, field.name)
        if field.name in ("name", "source", "stop", "tokens") or value == field.default:
            continue
        yield field.name, value


def _sample(template: AnyTemplate) -> Conversation:
    """Return the sample that has most of what a template has a place for."""
    from lmf.templates.traits import SAMPLES, takes

    return SAMPLES[next((name for name in RICHEST if takes(template, SAMPLES[name])), "one turn")]


def _declared(file: Path) -> tuple[Any, ...]:
    from lmf.data.jsonfile import parse
    from lmf.data.textfile import whole
    from lmf.formats.toolcalls import declared

    try:
        return declared({"tools": parse(whole(file))}, f"{file}: ")
    except DataError as error:
        raise DataError(str(error) if str(error).startswith(str(file)) else f"{file}: {error}") from None


def _conversations(data: str, number: int, plugins: Plugins) -> tuple[str, list[tuple[str, Conversation]]]:
    """Return where a record stands, and its conversations, each with what the record says of it."""
    from lmf.data.originals import read_originals
    from lmf.data.rewrite import conversations

    if number < 1:
        raise ConfigError(f"--record is {number}; it must be at least 1.")
    records = read_originals([data], plugins).records
    if number > len(records):
        raise ConfigError(f"--record is {number}; {data} has {len(records):,} records.")
    record = records[number - 1]
    found = conversations(record.data)
    if not found:
        raise DataError(f"{record.where}: the record is a {record.format.data}; a template renders conversations.")
    return record.where, found


def _print(shown: Sequence[tuple[str, Sequence[Span]]]) -> None:
    from . import views

    on = views.console()
    if not views.coloured(on):
        print(f"{views.KEY}\n")
    for number, (what, spans) in enumerate(shown):
        if number:
            print()
        if what:
            print(f"{what}:")
        views.show(spans, on)


def _pieces(what: str, spans: Sequence[Span]) -> dict[str, Any]:
    pieces = [
        {"text": span.text, "control": span.control, "trained": span.trained, "weight": span.weight} for span in spans
    ]
    return {"what": what, "pieces": pieces}


def _differences(
    first: tuple[str, AnyTemplate], second: tuple[str, AnyTemplate], tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[list[str]]:
    """Yield the lines of a unified diff for each sample that one of the templates has a place for."""
    from lmf.templates.traits import SAMPLES

    from . import views

    no_place = ["! it has no place for this conversation"]
    for sample, conversation in SAMPLES.items():
        texts: list[list[str]] = []
        for _, template in (first, second):
            try:
                examples = rendered(template, conversation, tokenizer)
                texts.append([line for spans in examples for line in views.plain(spans)])
            except DataError:
                texts.append(no_place)
        before, after = texts
        names = {"fromfile": f"{first[0]}, {sample}", "tofile": f"{second[0]}, {sample}"}
        if before != no_place or after != no_place:
            yield list(difflib.unified_diff(before, after, **names, lineterm="", n=2))


def _checked(template: AnyTemplate, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[tuple[str, str]]:
    """Yield each promise and what is wrong with it, if something is."""
    from lmf.testing import check_encoding, template_checks

    from . import tokens

    checks = template_checks(template)
    if tokenizer:
        added = tokens.complete(tokenizer, template)
        given = f" (it was given {', '.join(added)})" if added else ""
        checks[f"with this tokenizer{given} the ids are those of transformers, and each reply's end is learned"] = (
            lambda: check_encoding(template, tokenizer)
        )
    for promise, check in checks.items():
        try:
            check()
        except (AssertionError, LmfError) as error:
            yield promise, str(error).removeprefix(f"{template.name}: ")
        else:
            yield promise, ""


_JINJA = (".jinja", ".jinja2")
