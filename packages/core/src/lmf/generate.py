"""Replies of a model, in the format it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .config import make
from .conversation import Message
from .encoding.encoder import Encoder
from .errors import ConfigError, LmfError
from .models import load_model, load_tokenizer
from .plugins import Plugins
from .runs import RUN_FILE, read_run
from .sources import Source, family, find_model
from .templates.choose import named_template, template_for, with_reasoning
from .templates.jinja import AUTO, AnyTemplate
from .training import packing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Chatter:
    """A model with all that it takes to talk to it.

    Attributes:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        template: The template it was trained with; None for a model of plain text.
        encoder: Encodes with both.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    template: AnyTemplate | None
    encoder: Encoder


def open_model(name: str, plugins: Plugins, template: str = AUTO) -> Chatter:
    """Load a base model, or what a run of lmf gave out, with the template it was trained with.

    Args:
        name: An output folder of a run, or anything that ``--model`` takes.
        plugins: What is installed.
        template: Another template than the model's own: a name or a Jinja file.

    Raises:
        LmfError: There is no such model, or a plugin that its run used is missing.
    """
    folder = Path(name)
    if (folder / RUN_FILE).exists():
        record = read_run(folder)
        if record["status"] != "finished":
            raise LmfError(f"The run in {folder} is {record['status']}; continue it with --resume first.")
        model, tokenizer = _open_run(folder, record, plugins)
        usual, reasoning = record["template"], record["settings"]["reasoning"]
    else:
        source = find_model(name, plugins)
        model, tokenizer = load_model(source).eval(), load_tokenizer(source)
        usual, reasoning = source.template or AUTO, "strip"
    asked = named_template(template, plugins)
    if asked is None and usual not in (None, AUTO):
        asked = plugins.templates[usual]
    chosen = template_for(tokenizer, asked) if asked or usual else None  # of a run on texts there is none
    chosen = with_reasoning(chosen, reasoning) if chosen else None
    return Chatter(model, tokenizer, chosen, Encoder(tokenizer, chosen))


def _open_run(folder: Path, record: Mapping[str, Any], plugins: Plugins) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Load what a run gave out: a whole model, or the base and what the method put beside it."""
    here = find_model(str(folder), plugins) if (folder / "config.json").exists() else None
    base = here or find_model(record["settings"]["model"], plugins)
    tokenizer = load_tokenizer(Source(str(folder), str(folder)))
    model: Any = load_model(base)
    if here is None:
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer))
        method = plugins.methods[record["settings"]["method"]]
        options = {f.name: record["settings"][f.name] for f in fields(method.options) if f.name in record["settings"]}
        tuner = method.build(make(method.options, options), family(model.config.model_type, plugins))
        model = tuner.prepare(model, record["new_tokens"])
        tuner.load(model, folder)
    return model.eval(), tokenizer


def reply(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    encoder: Encoder,
    prompt: str,
    *,
    system: str | None = None,
    prefill: str = "",
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    stream: Callable[[str], None] | None = None,
) -> str:
    """Return the model's reply to one user message, or its continuation of a text.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        encoder: Encodes with the template; without a template the prompt is continued.
        prompt: The user's message, or the text.
        system: A system message, which only a template can write.
        prefill: How the reply begins; what is returned goes on from there.
        max_new_tokens: Longest reply in tokens.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn.
        stream: Gets the text in parts as it is written.
    """
    template = encoder.template
    if template:
        opening = [] if system is None else [Message("system", system)]
        ids = encoder.prompt([*opening, Message("user", prompt)], prefill=prefill)
    elif system is not None:
        raise ConfigError("This model continues text and has no template; a system message has no place in it.")
    else:
        ids = encoder.plain(prompt + prefill)
    texts, known = template.stops(encoder.eos) if template else (), tokenizer.get_vocab()
    stops = sorted({known[text] for text in (*texts, encoder.eos) if text in known})
    strings = [text for text in texts if text not in known]
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
    if temperature > 0:
        options["temperature"] = temperature
    if strings:
        options |= {"stop_strings": strings, "tokenizer": tokenizer}
    device = next(model.parameters()).device
    row = torch.tensor([ids], device=device)
    causal: Any = model
    with ordinary_attention(model), torch.no_grad():
        out = causal.generate(
            input_ids=row,
            attention_mask=torch.ones_like(row),
            eos_token_id=stops or None,
            pad_token_id=stops[0] if stops else 0,
            streamer=_streamer(tokenizer, stream),
            **options,
        )
    written = out[0, len(ids) :].tolist()
    if written and written[-1] in stops:
        written.pop()
    text = str(tokenizer.decode(written, skip_special_tokens=True))
    for string in strings:
        text = text.partition(string)[0]
    return text


@contextmanager
def ordinary_attention(model: nn.Module) -> Iterator[None]:
    """Use transformers' own attention inside the block: the packed one cannot read a cache."""
    base: Any = getattr(model, "get_base_model", lambda: model)()
    training, packed = model.training, base.config._attn_implementation == packing.ATTENTION
    model.eval()
    if packed:
        base.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if packed:
            base.set_attn_implementation(packing.ATTENTION)
        model.train(training)


def _streamer(tokenizer: PreTrainedTokenizerBase, stream: Callable[[str], None] | None) -> Any:
    if stream is None:
        return None
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            stream(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
