"""The promises a plugin must keep, as checks that any plugin's tests can call.

Each check raises AssertionError with the name of what it checked. The tiny model and
tokenizer are random and made on the spot, so nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

from .conversation import Conversation
from .errors import DataError, LmfError
from .evaluate.task import Chosen, EvalTask, Outcome, Problem, Written
from .plugins import Plugins
from .specs import Kernel, ModelSpec, Objective, Record, TuningMethod
from .templates.jinja import AnyTemplate, JinjaTemplate
from .templates.sandbox import DATE
from .templates.template import Message, Template
from .templates.traits import SAMPLES, takes, traits

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

    from .evaluate.sources import Items

TALK = (Message("user", "Ping?"), Message("assistant", "Pong!"), Message("user", "Bye."), Message("assistant", "Ciao!"))
TINY = ModelSpec(
    name="tiny",
    model_types=frozenset({"llama"}),
    template="chatml",
    projections=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)
TASK_ITEMS = 8  # of a benchmark, which are asked
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tiny_model(seed: int = 0, vocab_size: int = 300, tied: bool = False, dropout: float = 0.0) -> LlamaForCausalLM:
    """Return a random Llama with 4 layers of width 64."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=0,
            eos_token_id=2,
            attention_dropout=dropout,
            tie_word_embeddings=tied,
        )
        return LlamaForCausalLM(config)


def tiny_tokenizer(vocab_size: int = 300, special: Sequence[str] = SPECIAL) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with a few merges; the last special token ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(["the user and the assistant say hello", "what is one and two, answer three"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=special[0], eos_token=special[-1])


def tiny_checkpoint(folder: Path, **model: Any) -> Path:
    """Write the tiny model and tokenizer into a folder that ``--model`` takes."""
    tokenizer = tiny_tokenizer()
    tiny_model(vocab_size=len(tokenizer), **model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def check_template(template: AnyTemplate, talk: Sequence[Message] = TALK) -> None:
    """Every message is rendered once, only replies are trained, each reply ends with a stop string,
    a prompt in chat is how the same conversation began in training, and transformers renders the same.
    What is said to be steady never changes what it wrote when a conversation goes on."""
    for check in template_checks(template, talk).values():
        check()


def template_checks(template: AnyTemplate, talk: Sequence[Message] = TALK) -> dict[str, Callable[[], None]]:
    """Return the checks that ``check_template`` makes, each by what it proves.

    Args:
        template: The template.
        talk: User and assistant in turn, without a system message.
    """
    learning = "every message is rendered once; replies with their ends are trained, and nothing else"
    if not isinstance(template, JinjaTemplate):
        plain = _talks(template, talk)
        return {
            learning: lambda: _each(_check_rendering, template, plain),
            "its Jinja text renders the same in transformers": lambda: _each(_check_jinja, template, plain),
        }
    talks = _conversations(template, talk)
    checks = {
        learning: lambda: _each(_check_learning, template, talks),
        "transformers renders the same": lambda: _each(_check_transformers, template, talks),
    }
    if template.steady:
        all_talks = [*talks, *SAMPLES.values()]
        checks["a conversation that goes on keeps what stands before"] = lambda: _each(
            _check_steady, template, all_talks
        )
    return checks


def _each(check: Callable[[Any, Any], None], template: AnyTemplate, talks: Iterable[Any]) -> None:
    for talk in talks:
        check(template, talk)


def _talks(template: Template, talk: Sequence[Message]) -> list[tuple[Message, ...]]:
    """Return a conversation with what a template of fields has a place for."""
    talks = [tuple(talk)]
    if template.system is not None:
        talks.append((Message("system", "Be brief!"), *talk))
    if template.tool is not None:
        talks.append((*talk, Message("tool", "4 degrees"), Message("assistant", "It is cold.")))
    return talks


def _conversations(template: JinjaTemplate, talk: Sequence[Message]) -> list[Conversation]:
    """Return a conversation, and more of them with what a template in Jinja has a place for."""
    found = traits(template)
    talks = [Conversation(tuple(talk))]
    if found.system:
        talks.append(Conversation((Message("system", "Be brief!"), *talk)))
    if found.tools:
        talks.append(SAMPLES["a tool call"])
    if found.reasoning:
        talks.append(SAMPLES["reasoning"])
    return talks


def _check_rendering(template: Template, talk: Sequence[Message]) -> None:
    name = template.name
    pieces = template.render(talk, bos="<BOS>", eos="<EOS>")
    text = "".join(p.text for p in pieces)
    trained = "".join(p.text for p in pieces if p.learned)
    for message in talk:
        assert text.count(message.content) == 1, f"{name}: {message.content!r} is not rendered once"
        want = message.role == "assistant"
        assert (message.content in trained) == want, f"{name}: wrong text is trained: {trained!r}"
    contents, plain = {m.content for m in talk}, {p.text for p in pieces if not p.control}
    assert contents <= plain, f"{name}: content is control text: {contents - plain}"
    assert plain <= contents | {template.default_system}, (
        f"{name}: its own text is not control text: {plain - contents}"
    )
    replies = [m for m in talk if m.role == "assistant"]
    stop = template.stops("<EOS>")[0]
    assert trained.count(stop) >= len(replies), f"{name}: a reply is trained without the stop string {stop!r}"
    for i, message in enumerate(talk):
        if message.role == "assistant":
            prompt = "".join(p.text for p in template.render(talk[:i], reply=True, bos="<BOS>", eos="<EOS>"))
            assert text.startswith(prompt), f"{name}: prompts in chat differ from prompts in training"


def _check_jinja(template: Template, talk: Sequence[Message]) -> None:
    tokenizer = tiny_tokenizer()
    messages = [{"role": m.role, "content": m.content} for m in talk]
    for count, reply in ((len(talk), False), (len(talk) - 1, True)):
        pieces = template.render(talk[:count], reply=reply, bos=SPECIAL[0], eos=SPECIAL[-1])
        theirs = tokenizer.apply_chat_template(
            messages[:count], chat_template=template.jinja(), add_generation_prompt=reply, tokenize=False
        )
        ours = "".join(p.text for p in pieces)
        assert theirs == ours, f"{template.name}: its Jinja text renders {theirs!r} instead of {ours!r}"


def _check_learning(template: JinjaTemplate, talk: Conversation) -> None:
    name = template.name
    whole = "".join(p.text for p in template.render(talk.messages, tools=talk.tools, bos="<BOS>", eos="<EOS>"))
    for message in filter(None, (m.content for m in talk.messages)):
        forms = {message, json.dumps(message, ensure_ascii=False)[1:-1]}  # a result may stand in JSON
        assert sum(map(whole.count, forms)) == 1, f"{name}: {message!r} is not rendered once"
    found = []  # of each reply, what stands before it and what it is
    for pieces in template.examples(talk, bos="<BOS>", eos="<EOS>"):
        for i, piece in enumerate(pieces):
            if piece.learned:
                found.append(("".join(p.text for p in pieces[:i]), piece.text))
    replies = [(i, message) for i, message in enumerate(talk.messages) if message.role == "assistant"]
    assert len(found) == len(replies), f"{name}: {len(found)} stretches of text are trained for {len(replies)} replies"
    stops = template.stops("<EOS>")
    for (before, text), (i, message) in zip(found, replies, strict=True):
        parts = (message.content, message.reasoning, *(call.name for call in message.calls))
        others = [other.content for other in talk.messages if other.content and other is not message]
        right = all(part in text for part in parts) and not any(other in text for other in others)
        assert right, f"{name}: wrong text is trained: {text!r}"
        assert text.rstrip().endswith(stops), f"{name}: a reply is trained without a stop string at its end: {text!r}"
        prompt = template.render(talk.messages[:i], tools=talk.tools, reply=True, bos="<BOS>", eos="<EOS>")
        same = before == "".join(p.text for p in prompt)
        assert same, f"{name}: prompts in chat differ from prompts in training"


def _check_steady(template: JinjaTemplate, talk: Conversation) -> None:
    texts = []
    for count in range(1, len(talk.messages) + 1):
        with contextlib.suppress(DataError):  # it may refuse what is not finished
            texts.append(template.text_of(Conversation(talk.messages[:count], talk.tools)))
    for before, after in itertools.pairwise(texts):
        assert after.startswith(before), f"{template.name}: it is not steady: {before!r} does not begin {after!r}"


def _check_transformers(template: JinjaTemplate, talk: Conversation) -> None:
    tokenizer: Any = tiny_tokenizer()
    messages = [openai_message(message) for message in talk.messages]
    count = max(i for i, message in enumerate(talk.messages) if message.role == "assistant")
    for end, reply in ((len(messages), False), (count, True)):
        with fixed_date():
            theirs = tokenizer.apply_chat_template(
                messages[:end],
                tools=list(talk.tools) or None,
                chat_template=template.jinja(),
                add_generation_prompt=reply,
                tokenize=False,
                **template.variables,
            )
        part = Conversation(talk.messages[:end], talk.tools)
        ours = template.text_of(part, reply=reply, bos=SPECIAL[0], eos=SPECIAL[-1])
        assert theirs == ours, f"{template.name}: transformers renders {theirs!r} instead of {ours!r}"


def check_encoding(template: AnyTemplate, tokenizer: PreTrainedTokenizerBase) -> None:
    """With a tokenizer that has the template's tokens: the ids are those of ``apply_chat_template``, but for
    those that change where a text is cut, at the start of a reply; prompts are how conversations begin;
    and the end of each reply is learned.

    Raises:
        LmfError: The tokenizer cannot work with the template.
    """
    from .encoding.encoder import IGNORED, Encoder

    name, encoder = template.name, Encoder(tokenizer, template)
    taken = [(what, talk) for what, talk in SAMPLES.items() if takes(template, talk)]
    assert taken, f"{name}: it takes no conversation at all"
    for what, talk in taken:
        examples = list(encoder.examples([Record(what, talk)]))
        learned = [label for example in examples for label in example.labels if label != IGNORED]
        replies = [i for i, message in enumerate(talk.messages) if message.role == "assistant"]
        ends = sum(label in encoder.end_ids for label in learned)
        assert ends >= len(replies), f"{name}, {what}: {ends} tokens that end a reply are learned for {len(replies)}"
        for i in replies:
            prompt = encoder.prompt(talk.messages[:i], talk.tools)
            begins = any(
                example.ids[: len(prompt)] == prompt
                and example.labels[len(prompt)] != IGNORED == example.labels[len(prompt) - 1]
                for example in examples
            )
            assert begins, f"{name}, {what}: the ids of a prompt are not how the conversation began in training"
            _check_ids(template, tokenizer, f"{name}, {what}", talk, i, prompt, reply=True)
        if len(examples) == 1:
            _check_ids(template, tokenizer, f"{name}, {what}", talk, len(talk.messages), examples[0].ids)


def _check_ids(
    template: AnyTemplate,
    tokenizer: Any,
    where: str,
    talk: Conversation,
    count: int,
    ours: Sequence[int],
    reply: bool = False,
) -> None:
    """Check ids against those of transformers, which does not cut where a reply starts."""
    messages = [openai_message(message) for message in talk.messages[:count]]
    given = {"tools": list(talk.tools) or None, "add_generation_prompt": reply, "chat_template": template.jinja()}
    variables = template.variables if isinstance(template, JinjaTemplate) else {}
    with fixed_date():
        text = tokenizer.apply_chat_template(messages, tokenize=False, **given, **variables)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    theirs = encoded["input_ids"]
    if theirs == list(ours):
        return
    bos, eos = str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")
    pieces = template.render(talk.messages[:count], tools=talk.tools, reply=reply, bos=bos, eos=eos)
    starts = [sum(len(p.text) for p in pieces[:i]) for i, piece in enumerate(pieces) if piece.learned]
    across = any(begin < start < end for start in starts for begin, end in encoded["offset_mapping"])
    parts = [text[begin:end] for begin, end in itertools.pairwise((0, *starts, len(text)))]
    cut = [id for part in parts for id in tokenizer(part, add_special_tokens=False)["input_ids"]]
    at = next(i for i, pair in enumerate(itertools.zip_longest(ours, theirs)) if pair[0] != pair[1])
    assert across or cut == list(ours), (
        f"{where}: the ids differ from apply_chat_template at token {at}: "
        f"{tokenizer.convert_ids_to_tokens(list(ours[at : at + 3]))} here, "
        f"{tokenizer.convert_ids_to_tokens(theirs[at : at + 3])} there"
    )


@contextlib.contextmanager
def fixed_date() -> Iterator[None]:
    """Let transformers take the same day for today as lmf does."""
    import transformers.utils.chat_template_utils as theirs

    with mock.patch.object(theirs, "datetime", mock.Mock(now=lambda: DATE)):
        yield


def openai_message(message: Message) -> dict[str, Any]:
    """Return a message as OpenAI and the chat templates of transformers have it."""
    told: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        told |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
    if message.calls:
        calls = [({"name": call.name, "arguments": dict(call.arguments)}, call.id) for call in message.calls]
        told["tool_calls"] = [{"type": "function", "function": call} | ({"id": id} if id else {}) for call, id in calls]
    named = {"name": message.name, "tool_call_id": message.call_id}
    return told | {key: value for key, value in named.items() if value}


def check_method(method: TuningMethod, folder: Path, steps: int = 4) -> None:
    """Training lowers the loss, leaves frozen weights alone and learns new tokens; what is saved gives the
    same bits again, at the end and as a checkpoint between two steps, and damage to it is refused."""
    import torch

    assert dataclasses.is_dataclass(method.options), f"{method.name}: options must be a dataclass"
    with torch.random.fork_rng():
        for new_tokens in ((), (5, 7)):
            _check_training(method, folder / f"{len(new_tokens)}-new", steps, new_tokens)


def _check_training(method: TuningMethod, folder: Path, steps: int, new_tokens: Sequence[int]) -> None:
    import torch

    from .parallel.pieces import restore, state_of
    from .training import checkpoint

    name, base = method.name, tiny_model()
    ids = torch.randint(8, 300, (4, 16), generator=torch.Generator().manual_seed(0))
    ids[:, 2:4] = torch.tensor([5, 7])

    def begin(seed: int) -> tuple[Any, Any, Any]:
        torch.manual_seed(seed)
        tuner = method.build(method.options(), TINY)
        model = tuner.prepare(copy.deepcopy(base), new_tokens).train()
        return tuner, model, torch.optim.AdamW(tuner.groups(model, 1e-2, 0.0))

    def work(tuner: Any, model: Any, optimizer: Any, first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            tuner.before_step(step, optimizer)
            known = {p for group in optimizer.param_groups for p in group["params"]}
            left = [n for n, p in model.named_parameters() if p.requires_grad and p not in known]
            assert not left, f"{name}: trained parameters are in no group of the optimizer: {left[:3]}"
            frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            changed = [n for n, p in model.named_parameters() if n in frozen and not torch.equal(p, frozen[n])]
            assert not changed, f"{name}: frozen parameters changed: {changed[:3]}"
        return losses

    tuner, model, optimizer = begin(0)
    half = steps // 2
    embedded = model.get_input_embeddings()(torch.tensor([5, 7])).detach().clone()
    losses = work(tuner, model, optimizer, 0, half)
    written = checkpoint.write(folder, half, lambda path: tuner.save(model, path), state_of(model, optimizer), {})
    saved = written.complete()
    losses += work(tuner, model, optimizer, half, steps)
    assert losses[-1] < losses[0], f"{name}: the loss did not fall: {losses}"
    after = model.get_input_embeddings()(torch.tensor([5, 7]))
    learned = (after != embedded).any(dim=1).all()
    assert learned or not new_tokens, f"{name}: the embeddings of new tokens are not trained"

    out = folder / "out"
    out.mkdir()
    tuner.save(model, out)
    pickles = [p.name for p in out.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not pickles, f"{name}: saves pickles: {pickles}"
    other, again, _ = begin(1)
    other.load(again, out)
    with torch.no_grad():
        same = torch.equal(again.eval()(ids).logits, model.eval()(ids).logits)
    assert same, f"{name}: what was saved gives other logits when it is loaded"

    other, again, optimizer = begin(2)
    other.load(again, saved)
    restore(again, optimizer, checkpoint.load(saved)[1])
    work(other, again, optimizer, half, steps)
    straight, resumed = model.state_dict(), again.state_dict()
    differ = [n for n in straight if not torch.equal(straight[n], resumed[n])]
    assert not differ, f"{name}: a resumed run comes to other weights: {differ[:3]}"
    _check_damage(name, out, lambda: begin(3)[:2])


def _check_damage(name: str, folder: Path, begin: Callable[[], tuple[Any, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    first = next(iter(tensors))
    for what, harmed in (
        ("a missing tensor", {n: t for n, t in tensors.items() if n != first}),
        ("a foreign tensor", tensors | {"foreign.weight": tensors[first].clone()}),
        ("a tensor of another shape", tensors | {first: tensors[first][:1].clone()}),
        ("a value that is no number", tensors | {first: tensors[first] * float("nan")}),
    ):
        save_file(harmed, file, {"format": "pt"})
        tuner, model = begin()
        try:
            tuner.load(model, folder)
        except LmfError:
            continue
        raise AssertionError(f"{name}: loads {what} without an LmfError")


def check_objective(objective: Objective, records: Iterable[Record], template: Template) -> None:
    """Examples hold something to learn and name their records, and the loss is a finite sum with a gradient that
    does not depend on how examples are batched, padded or packed.

    Args:
        objective: The objective.
        records: At least two, of the kind that it learns from.
        template: What renders conversations.
    """
    import torch

    from .encoding.encoder import IGNORED, Encoder
    from .training.packing import ATTENTION, pack, pad

    name, records = objective.name, list(records)
    special = [token for token in dict.fromkeys((*SPECIAL, *template.tokens)) if token != SPECIAL[-1]]
    tokenizer = tiny_tokenizer(special=[*special, SPECIAL[-1]])
    assert len(records) > 1, "two ways to batch the examples need at least two records"
    assert dataclasses.is_dataclass(objective.options), f"{name}: options must be a dataclass"
    criterion = objective.build(objective.options())
    examples = list(criterion.encode(records, Encoder(tokenizer, template)))
    assert examples and all(e.weight for e in examples), f"{name}: an example has nothing to learn"
    places = {r.where for r in records}
    assert all(any(place in e.where for place in places) for e in examples), f"{name}: an example names no record"
    for e in examples:
        paired = zip(e.labels, e.ids, strict=True)
        assert all(label in (IGNORED, id) for label, id in paired), f"{name}: a label is not the id at its place"
    model = tiny_model(vocab_size=len(tokenizer)).eval()
    for parameter in model.parameters():  # as it is made, a model hardly looks at other tokens
        parameter.data *= 6 if parameter.ndim > 1 else 1
    together = criterion.loss(model, pad(examples))
    assert together.ndim == 0 and torch.isfinite(together), f"{name}: the loss is not a finite scalar"
    assert together.requires_grad, f"{name}: the loss has no gradient"
    padded = together.item()
    with torch.no_grad():
        alone = sum(criterion.loss(model, pad([e])).item() for e in examples)
        model.set_attn_implementation(ATTENTION)
        packed = criterion.loss(model, pack(examples)).item()
    for what, loss in (("one by one", alone), ("packed", packed)):
        close = math.isclose(padded, loss, rel_tol=1e-5)
        assert close, f"{name}: the loss is {padded} in one padded batch, but {loss} {what}"


def check_kernel(kernel: Kernel, device: str = "cpu") -> None:
    """In float32, float16 and bfloat16, for models of several sizes and with each option, a kernel gives what the
    definition of its part gives in float64, with every gradient, and the same bits again. It may refuse an option, but
    not all, with an LmfError. An implementation of attention that transformers knows by a name is one that it knows.

    Args:
        kernel: The kernel; it must be able to run here.
        device: Where to run it.
    """
    import torch

    from .training.parts import ALLOWED, PLAIN, differences
    from .training.trials import trials

    name, reason = kernel.name, kernel.reason()
    assert reason is None, f"{name}: it cannot run here: {reason}"
    function = kernel.load()
    if isinstance(function, str):
        from transformers import AttentionInterface

        assert kernel.part == "attention", f"{name}: of {kernel.part}, load must return a function"
        assert function in AttentionInterface().valid_keys(), f"{name}: transformers knows no attention {function!r}"
        return
    for dtype, (heads, shared, size) in itertools.product(ALLOWED, ((1, 1, 64), (6, 2, 64), (4, 4, 128))):
        config = SimpleNamespace(
            hidden_size=heads * size + 32,
            intermediate_size=3 * size + 2,
            num_attention_heads=heads,
            num_key_value_heads=shared,
            head_dim=size,
            vocab_size=301,
        )
        config.get_text_config = lambda config=config: config
        tried = trials(kernel.part, config, dtype, torch.device(device), everything=True)
        for number, (inputs, more) in enumerate(tried):
            what = f"{name}, {dtype}, {heads} heads of {size}, {more}"
            try:
                found = differences(function, getattr(PLAIN, kernel.part), inputs, more, torch.float64)
            except LmfError as error:
                assert number, f"{what}: {error}"
                continue
            assert max(found.values()) <= ALLOWED[dtype], f"{what}: off by {found}; {ALLOWED[dtype]:.0e} is allowed"
            again = differences(function, function, inputs, more)
            assert not any(again.values()), f"{what}: called again, it gives something else: {again}"


def check_task(task: EvalTask, folder: Path, plugins: Plugins | None = None) -> None:
    """The problems can be read and asked; figures are numbers that do not depend on the order of the problems or
    on what was there already; a perfect reply gets the best figure and an empty one no error.

    Args:
        task: The task; its data must be here.
        folder: An empty folder, for a tiny model.
        plugins: Where its data are looked up; by default what is installed.
    """
    from .evaluate.lengths import at_lengths
    from .evaluate.running import Evaluator, score, totals
    from .evaluate.sources import limited, read_items
    from .generate.caches import runner_for
    from .generate.opening import open_model
    from .settings import Evaluation

    plugins = plugins or Plugins()
    items = limited(read_items(task, plugins), TASK_ITEMS)
    assert items.items, f"{task.name}: it has no problems"
    chatter = open_model(str(tiny_checkpoint(folder)), plugins)
    runner = runner_for(chatter.model)
    asked = Evaluation(template="none", shots=min(task.shots, len(items.examples) - 1), max_tokens=4, on_overflow="cut")

    items = limited(at_lengths(items, asked, chatter)[0], TASK_ITEMS)

    def sums(items: Items, done: Container[int] = ()) -> dict[str, dict[str, tuple[float, ...]]]:
        found = [one for some in Evaluator(items, asked, chatter, runner).run(done) for one in some]
        return {items.items[number].key: score(task, items.items[number], outcome) for number, outcome in found}

    whole = sums(items)
    turned = dataclasses.replace(items, items=items.items[::-1])
    assert sums(turned) == whole, f"{task.name}: its figures depend on the order of the problems"
    rest = sums(items, done=range(len(items.items) // 2))
    assert rest == {key: whole[key] for key in rest}, f"{task.name}: an interrupted run gives other figures"
    for name, value in totals(task, list(whole.values())).items():
        assert isinstance(value, float | int), f"{task.name}: the figure {name} is {value!r}, no number"
    if task.asks != "likelihood":
        _check_scores(task, items)


def _check_scores(task: EvalTask, items: Items) -> None:
    """Compare the figures of perfect outcomes with those of wrong ones."""
    from .evaluate.metrics import metrics_of
    from .evaluate.running import score, totals

    def figures(right: bool) -> dict[str, float]:
        return totals(task, [score(task, item, _outcome(task, item.problem, right)) for item in items.items])

    best, worst = figures(True), figures(False)
    better = [
        metric.name
        for metric in metrics_of(task)
        if (best[metric.name] > worst[metric.name]) == metric.higher and best[metric.name] != worst[metric.name]
    ]
    assert better, f"{task.name}: no figure is better for right answers than for wrong ones: {best}, {worst}"


def _outcome(task: EvalTask, problem: Problem, right: bool) -> Outcome:
    if task.asks == "reply":
        return Written((problem.shown if right else "",), ("stop",))
    chosen = [-1.0 if (number in problem.right) == right else -1000.0 for number in range(len(problem.choices))]
    return Chosen(tuple(chosen), (1,) * len(chosen))
