"""A model's tokenizer and template, as a run would take them, and encoded text put back into words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lmf import DataError, Plugins
from lmf.conversation import Conversation, Record
from lmf.data.originals import Original
from lmf.data.rewrite import conversations
from lmf.sources import Source, family, find_model
from lmf.templates.choose import complete, named_template, template_for
from lmf.templates.jinja import AnyTemplate

from .views import Span

if TYPE_CHECKING:
    from lmf.encoding.encoder import Encoder, Example
    from transformers import PreTrainedTokenizerBase


def open_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model."""
    from lmf.models import load_tokenizer, quiet  # torch is imported here

    quiet()
    return load_tokenizer(source)


def open_encoder(model: str, template: str, plugins: Plugins, records: Sequence[Original]) -> Encoder:
    """Return what encodes records as a run with this model and template would.

    Args:
        model: What ``--model`` takes.
        template: What ``--template`` takes.
        plugins: What is installed.
        records: What is to be encoded; texts by themselves need no template.
    """
    chosen = named_template(template, plugins)
    source = find_model(model, plugins)
    tokenizer = open_tokenizer(source)
    from lmf.encoding.encoder import Encoder

    if chosen is None and all(record.format.data == "text" for record in records):
        return Encoder(tokenizer, None)
    chosen = usual_template(chosen, source, tokenizer, plugins)
    complete(tokenizer, chosen)
    return Encoder(tokenizer, chosen)


def usual_template(
    asked: AnyTemplate | None, source: Source, tokenizer: PreTrainedTokenizerBase, plugins: Plugins
) -> AnyTemplate:
    """Return the template that was asked for, or else a checkpoint's, the model's own, or its family's."""
    if asked is None and source.template:
        asked = plugins.templates[source.template]
    if found := template_for(tokenizer, asked):
        return found
    from lmf.models import load_config

    return plugins.templates[family(load_config(source).model_type, plugins).template]


def encoded(records: Sequence[Original], encoder: Encoder) -> Iterator[Example]:
    """Yield what is made of records: of one that compares replies, an example for each of them.

    Raises:
        DataError: The template has no place for something in them.
    """
    from lmf.encoding.encoder import IGNORED, Example

    texts = [Record(each.where, each.data) for each in records if each.format.data == "text"]
    asked = [each for each in records if each.format.data == "prompt"]
    talks = [
        Record(f"{each.where} ({said})" if said else each.where, conversation)
        for each in records
        if each.format.data not in ("text", "prompt")
        for said, conversation in conversations(each.data)
    ]
    yield from encoder.texts(texts)
    if talks:  # an encoder of texts alone has no template
        yield from encoder.examples(talks)
    for each in asked:
        prompt: Conversation = each.data
        try:
            ids = encoder.prompt(prompt.messages, prompt.tools)
        except DataError as error:
            raise DataError(f"{each.where}: {error}") from None
        yield Example(ids, [IGNORED] * len(ids), each.where)


def spelled(example: Example, encoder: Encoder) -> list[Span]:
    """Return the text of each token; tokens that hold parts of one letter stand together."""
    from lmf.encoding.encoder import IGNORED

    spans: list[Span] = []
    before: list[int] = []  # the ids of the last span: how a token is spelled can depend on its neighbour
    ids: list[int] = []
    weights = example.weights or [1.0] * len(example.ids)
    for place, id in enumerate(example.ids):
        ids.append(id)
        control = id in encoder.control_ids
        text = encoder.backend.id_to_token(id) or "" if control else _text(before, ids, encoder)
        following = example.ids[place + 1 : place + 2]
        last = not following or following[0] in encoder.control_ids
        if control or last or not text.endswith("\ufffd") or len(ids) == _MOST:
            trained = example.labels[place] != IGNORED
            spans.append(Span(text, control, trained, weights[place], tuple(ids)))
            before, ids = ids, []
    return spans


def _text(before: Sequence[int], ids: Sequence[int], encoder: Encoder) -> str:
    decode = encoder.backend.decode
    known = decode([*before], skip_special_tokens=False)
    return decode([*before, *ids], skip_special_tokens=False)[len(known) :]


_MOST = 8  # tokens of one letter; more than that is no letter at all
