"""Opens a model with all that it takes to talk to it: a base, or what a run of lmf gave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..config import make
from ..conversation import Message
from ..encoding.encoder import Encoder
from ..errors import ConfigError, LmfError
from ..memory import machine
from ..models import fingerprint, inner, load_model, load_tokenizer, quiet, stops
from ..plugins import Plugins
from ..rope import Scaling, lengthen, positions, scaling_of
from ..runs import RUN_FILE, read_run
from ..settings import LOOKUP, Opening, Sampling
from ..sources import Source, family, find_model
from ..templates.choose import named_template, template_for, with_reasoning
from ..templates.jinja import AUTO, AnyTemplate
from .caches import Runner, reading, runner_for, token_bytes
from .drafts import Drafting, Lookup, Smaller
from .engine import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


UNLIMITED = 2**20  # tokens, for a model that has no limit


@dataclass(frozen=True, slots=True)
class Chatter:
    """A model with all that it takes to talk to it.

    Attributes:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        encoder: Encodes for it, with the template it was trained with.
        most: The most tokens of a prompt and its reply; None for what the model can read by its configuration.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    most: int | None = None

    @property
    def template(self) -> AnyTemplate | None:
        """The template it was trained with; None for a model of plain text."""
        return self.encoder.template

    @property
    def context(self) -> int:
        """The most tokens of a prompt and its reply that the model can read."""
        return self.most or positions(inner(self.model).config) or UNLIMITED

    def stops(self) -> tuple[set[int], list[str]]:
        """Return what ends a reply: ids of tokens, and texts that are not one token."""
        eos = self.encoder.eos
        return stops(self.model, self.tokenizer, (*(self.template.stops(eos) if self.template else ()), eos))

    def ids(self, messages: Sequence[Message], prefill: str = "", tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Return the ids of a conversation up to where the model speaks on.

        Args:
            messages: The conversation. Without a template it can only be one text, of a user, to go on from.
            prefill: What the model has said already of its reply.
            tools: What the model may call.

        Raises:
            LmfError: The template has no place for something, or there is none.
        """
        if self.template:
            return self.encoder.prompt(messages, tools, prefill)
        if [message.role for message in messages] != ["user"] or tools:
            raise ConfigError(
                "This model continues text and has no template, so there can be one text and nothing else: no system "
                "message, no history, no tools. Choose a template, or give one text."
            )
        return self.encoder.plain(messages[0].content + prefill)

    def goes_on(self, prefill: str = "") -> bool:
        """Return whether what the model writes goes on from text of the prompt, so that it may begin with a space."""
        return bool(prefill) or self.template is None

    def engine(self, runner: Runner, *, context: int | None = None, **options: Any) -> Engine:
        """Return what writes replies.

        Args:
            runner: Runs the model.
            context: The most tokens of a prompt and its reply; by default what the model can read and memory can hold.
            options: Further arguments of ``Engine``.

        Raises:
            ConfigError: The model cannot read so many tokens, or memory cannot hold them.
        """
        room = self.room()
        for most, what in ((self.context, "the model can read"), (room, "there is memory for")):
            if context and context > most:
                raise ConfigError(f"--context {context} is more than the {most} tokens that {what}.")
        ends, texts = self.stops()
        context = context or min(self.context, room)
        return Engine(runner, self.tokenizer, ends, context, stop=texts, room=room, **options)

    def room(self) -> int:
        """Return how many tokens of texts the memory that is free now can hold: at least two."""
        device = next(self.model.parameters()).device
        # a cache that is full is copied into one of twice its size
        return max(2, machine.free(device) // (4 * token_bytes(self.model)))


def open_model(
    name: str, plugins: Plugins, template: str = AUTO, *, merged: bool = False, rope: Scaling | None = None
) -> Chatter:
    """Load a base model, or what a run of lmf gave out, with the template it was trained with.

    Args:
        name: An output folder of a run, or anything that ``--model`` takes.
        plugins: What is installed.
        template: Another template than the model's own: a name or a Jinja file.
        merged: Put what was trained beside a base into its weights.
        rope: Scale its positions; by default they are as they were in its training.

    Raises:
        LmfError: There is no such model, a plugin that its run used is missing, or its base is another one now.
    """
    folder = Path(name)
    if (folder / RUN_FILE).exists():
        record = read_run(folder)
        if record["status"] != "finished":
            raise LmfError(f"The run in {folder} is {record['status']}; continue it with --resume first.")
        model, tokenizer = _open_run(folder, record, plugins, merged, rope)
        usual, reasoning = record["template"], record["settings"]["reasoning"]
    else:
        source = replace(find_model(name, plugins), rope=rope)
        model, tokenizer = load_model(source).eval(), load_tokenizer(source)
        usual, reasoning = source.template or AUTO, "strip"
    asked = named_template(template, plugins)
    if asked is None and usual not in (None, AUTO):
        asked = plugins.templates[usual]
    if rope:
        lengthen(tokenizer, inner(model).config)
    chosen = template_for(tokenizer, asked) if asked or usual else None  # of a run on texts there is none
    chosen = with_reasoning(chosen, reasoning) if chosen else None
    return Chatter(model, tokenizer, Encoder(tokenizer, chosen))


def start(name: str, plugins: Plugins, opening: Opening, **options: Any) -> tuple[Chatter, Engine]:
    """Open a model, and return it with what writes its replies.

    Args:
        name: What ``open_model`` takes.
        plugins: What is installed.
        opening: How to open it.
        options: Further arguments of ``Engine``.

    Raises:
        LmfError: It cannot be opened so.
    """
    quiet()
    chatter = open_model(name, plugins, opening.template)
    if opening.draft_model == LOOKUP:
        options["draft"] = lambda sampling, chance: Lookup()
    elif opening.draft_model:
        options["draft"] = drafts_of(chatter, open_model(opening.draft_model, plugins))
    runner = runner_for(chatter.model)
    return chatter, chatter.engine(runner, context=opening.context, guesses=opening.draft_tokens, **options)


def _open_run(
    folder: Path, record: Mapping[str, Any], plugins: Plugins, merged: bool, rope: Scaling | None
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Load what a run gave out: a whole model, or the base and what the method put beside it."""
    here = find_model(str(folder), plugins) if (folder / "config.json").exists() else None
    base = replace(here or find_model(record["settings"]["model"], plugins), rope=scaling_in(folder, record, rope))
    tokenizer = load_tokenizer(Source(str(folder), str(folder)))
    model: Any = load_model(base)
    if here is None:
        if record.get("base") not in (None, fingerprint(model)):
            raise LmfError(
                f"{folder} was trained on other weights than {record['settings']['model']} has now.\n"
                "Give the base back its place, or merge with the right one: lmf merge BASE ADAPTER OUT."
            )
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer))
        method = plugins.methods[record["settings"]["method"]]
        options = {f.name: record["settings"][f.name] for f in fields(method.options) if f.name in record["settings"]}
        tuner = method.build(make(method.options, options), family(model.config.model_type, plugins))
        model = tuner.prepare(model, record["new_tokens"])
        tuner.load(model, folder)
        if merged:
            model = tuner.merge(model)
    return model.eval(), tokenizer


def scaling_in(folder: Path, record: Mapping[str, Any], asked: Scaling | None = None) -> Scaling | None:
    """Return how the positions of a run's base are scaled.

    Args:
        folder: The run's folder.
        record: Its record.
        asked: How they are asked to be.

    Raises:
        ConfigError: They were scaled otherwise in the run.
    """
    settings = record["settings"]
    then = scaling_of(settings.get("rope"), settings.get("rope_factor"))
    if asked and then and asked != then:
        raise ConfigError(f"The run in {folder} was trained with {then}, not with {asked}; leave --rope out.")
    return asked or then


def reply(chatter: Chatter, prompt: str, sampling: Sampling, *, system: str | None = None, prefill: str = "") -> str:
    """Return one reply to a message, or the continuation of a text, of a model that may be in training.

    Args:
        chatter: The model; it is afterwards what it was before.
        prompt: The user's message, or the text.
        sampling: How the reply is drawn.
        system: A system message, which only a template can write.
        prefill: How the reply begins; what is returned goes on from there.
    """
    opening = [] if system is None else [Message("system", system)]
    ids = chatter.ids([*opening, Message("user", prompt)], prefill)
    with reading(chatter.model) as runner:
        engine = chatter.engine(runner)
        replies = engine.submit(ids, sampling, continues=chatter.goes_on(prefill))
        engine.finish(replies)
    return replies[0].text


def drafts_of(chatter: Chatter, smaller: Chatter) -> Drafting:
    """Return what drafts with a smaller model.

    Raises:
        ConfigError: The two do not have the same tokens.
    """
    if chatter.tokenizer.get_vocab() != smaller.tokenizer.get_vocab():
        raise ConfigError(
            "The draft model has other tokens than the model, so its guesses cannot be checked. Choose a smaller model "
            "of the same family."
        )
    runner = runner_for(smaller.model)
    if not runner.crops:
        raise ConfigError("The draft model cannot take back what it has read, as speculative decoding must.")
    width = inner(chatter.model).get_output_embeddings().weight.shape[0]
    return lambda sampling, chance: Smaller(runner, sampling, chance, width)
