"""Problems are put to a model as the lm-evaluation-harness puts them, and in a template as in chat."""

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from lmf import ConfigError, DataError, Evaluation, Message, Plugins
from lmf.encoding.encoder import Encoder
from lmf.evaluate.asking import Asker, in_template
from lmf.evaluate.likelihood import Text
from lmf.evaluate.sources import Item, Items
from lmf.evaluate.task import EvalTask, Problem
from lmf.generate.opening import Chatter
from lmf.testing import tiny_model, tiny_tokenizer

TEMPLATES = Plugins().templates
TOKENIZER: Any = tiny_tokenizer()
MODEL = tiny_model(vocab_size=len(TOKENIZER))
WORDS = ["the user", "hello", "he", "l", "lo", "is", "what is", "温", "\n", "  ", " ", "1", "x's", ".", "é", "answer"]


def chatter(template: str | None = None, begins: bool = False) -> Chatter:
    """Return the tiny model; where texts of it begin with a token, ``begins``."""
    tokenizer: Any = tiny_tokenizer()
    if begins:
        from tokenizers.processors import TemplateProcessing

        first = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer._tokenizer.post_processor = TemplateProcessing(single=f"{first[0]} $A", special_tokens=[first])
        assert tokenizer("a")["input_ids"][0] == first[1]
    return Chatter(MODEL, tokenizer, Encoder(tokenizer, TEMPLATES[template] if template else None))


def items_of(problems: Sequence[Problem], examples: Sequence[Problem] | None = None, **task: Any) -> Items:
    """Return problems as those of a task."""
    more = {"name": "t", "source": "s", "version": 1, "data": "d", "asks": "choices"} | task
    asked = tuple(Item(f"f:{number}", problem, str(problem)) for number, problem in enumerate(problems, 1))
    shown = tuple(Item(f"e:{number}", problem, str(problem)) for number, problem in enumerate(examples or (), 1))
    return Items(EvalTask(**more), asked, asked if examples is None else shown, ())


def question(number: int, part: str = "", **more: Any) -> Problem:
    return Problem(prompt=f"Q{number}?", choices=(f"a{number}", f"b{number}"), right=(number % 2,), part=part, **more)


def choices(problem: Problem, evaluation: Evaluation, whom: Chatter, **task: Any) -> list[Text]:
    items = items_of([problem], **task)
    return Asker(items, evaluation, whom).choices(items.items[0])


def before(text: Text) -> str:
    """Return what stands before the reply."""
    return TOKENIZER.decode(text.ids[: text.start])


def scored(text: Text) -> str:
    return TOKENIZER.decode(text.ids[text.start :])


# As text


def text_of(chance: random.Random) -> str:
    return "".join(chance.choice(WORDS) for _ in range(chance.randint(1, 6)))


@pytest.mark.parametrize("begins", [False, True], ids=["texts begin at once", "texts begin with a token"])
@pytest.mark.parametrize("between", ["", " ", "\n"], ids=repr)
def test_a_context_and_its_continuation_have_the_ids_of_the_harness(between, begins):
    template_lm = pytest.importorskip("lm_eval.api.model").TemplateLM
    whom, chance = chatter(begins=begins), random.Random(0)
    tokenizer: Any = whom.tokenizer
    stub = SimpleNamespace(backend="causal", tok_encode=tokenizer.encode)
    reached = 0
    for _ in range(600):
        context, continuations = text_of(chance), [text_of(chance), text_of(chance)]
        if not context.strip():
            continue
        problem = Problem(prompt=context, choices=tuple(continuations), right=(0,))
        for text, continuation in zip(
            choices(problem, Evaluation(), whom, between=between), continuations, strict=True
        ):
            start, rest = template_lm._encode_pair(stub, context, between + continuation)
            if not rest:  # which the harness refuses
                reached += 1
                continue
            assert (list(text.ids), text.start) == (start + rest, len(start))
    assert reached or between


def test_a_reply_that_a_token_swallows_is_still_scored():
    """The harness gives up here; without a token to score it would be certain, and the likeliest of all."""
    he_ll, lo = choices(Problem(prompt="hel", choices=("lo", "p"), right=(0,)), Evaluation(), chatter(), between="")
    assert TOKENIZER.tokenize("hello") == ["he", "llo"] and TOKENIZER.tokenize("hel") == ["he", "l"]
    assert (before(he_ll), scored(he_ll), scored(lo)) == ("hel", "lo", "p")


def test_a_choice_without_a_prompt_is_read_after_the_token_that_opens_a_text():
    for whom in (chatter(), chatter(begins=True)):
        problem = Problem(prompts=("", "so"), choices=("hello", "hello"), right=(0,))
        alone, after = choices(problem, Evaluation(), whom)
        assert alone == Text((TOKENIZER.bos_token_id, *TOKENIZER(" hello")["input_ids"]), 1)
        assert (before(after).endswith("so"), scored(after)) == (True, " hello")


# Examples


@pytest.mark.parametrize("instructions", ["", "Answer in a word.\n\n"], ids=["plain", "with instructions"])
@pytest.mark.parametrize("shots", [0, 1, 3])
def test_examples_are_shown_as_by_the_harness(shots, instructions, monkeypatch):
    api = pytest.importorskip("lm_eval.api.task")
    import datasets

    problems = [question(number, instructions=instructions) for number in range(6)]
    records = [{"q": p.prompt, "c": list(p.choices), "gold": p.right[0]} for p in problems]
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: {"test": datasets.Dataset.from_list(records)})
    theirs = api.ConfigurableTask(
        config={
            "task": "t",
            "dataset_path": "json",
            "output_type": "multiple_choice",
            "test_split": "test",
            "fewshot_split": "test",
            "fewshot_config": {"sampler": "first_n"},
            "doc_to_text": "{{q}}",
            "doc_to_choice": "{{c}}",
            "doc_to_target": "gold",
            "description": instructions,
        }
    )
    items = items_of(problems)
    asker = Asker(items, Evaluation(shots=shots), chatter())
    for document, item in zip(theirs.eval_docs, items.items, strict=True):
        texts = asker.choices(item)
        requests: Any = theirs.construct_requests(document, theirs.fewshot_context(document, shots))
        assert [(before(text), scored(text)) for text in texts] == [request.args for request in requests]


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_a_problem_is_never_its_own_example(seed):
    same = question(1)
    items = items_of([same, question(2), same, question(3), question(4)])  # twice, and so twice not to be shown
    asker = Asker(items, Evaluation(shots=2, seed=seed), chatter())
    for item in items.items:
        shown = before(asker.choices(item)[0]).split("\n\n")
        assert len(shown) == 3
        assert not any(example.startswith(str(item.problem.prompt)) for example in shown[:-1])


def test_a_seed_draws_the_examples_and_always_the_same():
    items = items_of([question(number) for number in range(30)])

    def shown(seed: int | None) -> list[str]:
        asker = Asker(items, Evaluation(shots=3, seed=seed), chatter())
        return [before(asker.choices(item)[0]) for item in items.items]

    assert shown(None)[9].startswith("Q0? a0\n\nQ1? b1\n\nQ2? a2\n\nQ9?")
    assert shown(5) == shown(5)
    assert len({text for seed in (None, 5, 6) for text in shown(seed)[:1]}) == 3


def test_examples_are_of_the_part_of_the_problem():
    problems = [question(number, part="ab"[number % 2]) for number in range(8)]
    items = items_of(problems)
    asker = Asker(items, Evaluation(shots=2), chatter())
    for number, item in enumerate(items.items):
        shown = before(asker.choices(item)[0]).split("\n\n")[:-1]
        assert {int(text[1]) % 2 for text in shown} == {number % 2}


def test_examples_may_come_from_elsewhere_and_are_then_all_of_them():
    items = items_of([question(1)], [question(7), question(8)], shots=2)
    assert before(Asker(items, Evaluation(), chatter()).choices(items.items[0])[0]) == "Q7? b7\n\nQ8? a8\n\nQ1?"


def test_an_example_of_a_problem_with_several_prompts_shows_the_right_one():
    problems = [Problem(prompts=("Ann", "Bea"), choices=("won",) * 2, right=(1,)), question(1)]
    items = items_of(problems)
    assert before(Asker(items, Evaluation(shots=1), chatter()).choices(items.items[1])[0]) == "Bea won\n\nQ1?"


def test_too_few_examples_are_refused_before_anything_is_asked():
    problems = [question(number) for number in range(3)]
    with pytest.raises(ConfigError, match="--shots 3: t has 2 problems to show as examples"):
        Asker(items_of(problems), Evaluation(shots=3), chatter())
    items = items_of([question(1, part="a"), question(2, part="b"), question(3, part="a")])
    asker = Asker(items, Evaluation(shots=1), chatter())
    assert asker.choices(items.items[0])
    with pytest.raises(DataError, match="f:2: there are 0 examples of the part 'b'; --shots asks for 1"):
        asker.choices(items.items[1])


# In a template


def test_a_conversation_has_the_ids_of_chat():
    whom = chatter("chatml")
    items = items_of([question(number, instructions="Be brief.\n\n") for number in range(4)], continues=False)
    asker = Asker(items, Evaluation(shots=1), whom)
    for item, other in ((items.items[0], 1), (items.items[3], 0)):
        example = [Message("user", f"Q{other}?"), Message("assistant", items.items[other].problem.shown)]
        messages = [Message("system", "Be brief."), *example, Message("user", str(item.problem.prompt))]
        assert asker.prompt(item, 5) == whom.ids(messages)
        for text, choice in zip(asker.choices(item), item.problem.choices, strict=True):
            assert list(text.ids) == whom.ids(messages, choice)
            assert (text.ids[: text.start], scored(text)) == (tuple(whom.ids(messages)), choice)


def test_messages_of_a_problem_are_a_conversation():
    whom = chatter("chatml")
    talk = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "And?"))
    items = items_of([Problem(prompt=talk, answer="Bye")], asks="likelihood", continues=False)
    asker = Asker(items, Evaluation(), whom)
    (window,) = asker.windows(items.items[0])
    assert (list(window.ids), scored(window)) == (whom.ids(talk, "Bye"), "Bye")
    with pytest.raises(DataError, match=r"f:1: a conversation \(user, assistant, user\) is no text; ask it"):
        Asker(items, Evaluation(template="none"), whom).windows(items.items[0])


@pytest.mark.parametrize("continues", [True, False])
@pytest.mark.parametrize("own", ["chatml", None])
def test_a_template_is_used_where_the_task_or_the_caller_wants_it(own, continues):
    task, whom = items_of([question(1)], continues=continues).task, chatter(own)
    assert in_template(task, Evaluation(), whom) == (own is not None and not continues)
    assert not in_template(task, Evaluation(template="none"), whom)
    assert not in_template(task, Evaluation(prompt_structure="{input}"), whom)
    if own:
        assert in_template(task, Evaluation(template="auto"), whom)
    else:
        with pytest.raises(ConfigError, match="no template of its own; name one with --template, or --template none"):
            in_template(task, Evaluation(template="auto"), whom)


def test_a_template_without_a_place_for_instructions_is_named():
    items = items_of([question(1, instructions="Be brief.")], continues=False)
    asker = Asker(items, Evaluation(), chatter("vanilla"))
    for ask in (asker.choices, lambda item: asker.prompt(item, 5)):
        with pytest.raises(DataError, match=r"^f:1: the template 'vanilla' has no place for a system message"):
            ask(items.items[0])


# In a structure


def test_a_prompt_stands_in_its_structure_and_so_do_the_examples():
    structure = "###Human: {input}###Assistant:"
    items = items_of([question(1), question(2)], between="")
    asker = Asker(items, Evaluation(prompt_structure=structure, shots=1), chatter("chatml"))
    found = asker.choices(items.items[0])
    assert before(found[0]) == "###Human: Q2?###Assistant:a2\n\n###Human: Q1?###Assistant:"
    assert [scored(text) for text in found] == ["a1", "b1"]
    assert TOKENIZER.decode(asker.prompt(items.items[0], 5)) == before(found[0])


def test_braces_in_a_prompt_are_not_a_place_for_another():
    problem = Problem(prompt="{input} {0} {{", choices=("a", "b"), right=(0,))
    (text, _) = choices(problem, Evaluation(prompt_structure="<{input}>"), chatter())
    assert before(text) == "<{input} {0} {{>"


def test_a_structure_without_a_place_for_the_prompt_is_refused():
    with pytest.raises(ConfigError, match=r"--prompt-structure 'Human:' has no \{input\}"):
        Asker(items_of([question(1)]), Evaluation(prompt_structure="Human:"), chatter())


# What is too long


@pytest.mark.parametrize("template", [None, "chatml"])
def test_what_is_longer_than_the_context_is_refused_with_what_to_do(template):
    items = items_of([question(number) for number in range(4)], continues=False)
    asker = Asker(items, Evaluation(context=12, shots=2), chatter(template))
    with pytest.raises(DataError) as told:
        asker.choices(items.items[0])
    assert str(told.value).startswith("f:1: the problem has ")
    assert str(told.value).endswith(
        "tokens with its reply, and the context 12; ask with fewer --shots, or --on-overflow cut removes the beginning "
        "of such prompts."
    )
    with pytest.raises(DataError, match=r"f:1: the problem has .* and the context 12; ask with fewer"):
        asker.prompt(items.items[0], 3)


def test_a_prompt_that_is_cut_loses_its_beginning_and_nothing_of_the_reply():
    items = items_of([question(number) for number in range(4)])
    whole = Asker(items, Evaluation(shots=2), chatter())
    asker = Asker(items, Evaluation(context=12, shots=2, on_overflow="cut"), chatter())
    texts = list(zip(asker.choices(items.items[0]), whole.choices(items.items[0]), strict=True))
    for short, long in texts:
        assert (len(short.read), scored(short)) == (12, scored(long))
        assert long.ids[-13:] == short.ids
    assert asker.cut == 2
    assert asker.prompt(items.items[0], 3) == whole.prompt(items.items[0], 3)[-9:]
    assert (asker.cut, whole.cut) == (3, 0)


def test_a_reply_that_is_longer_than_the_context_is_refused_however():
    items = items_of([Problem(prompt="Q?", choices=("a", "no " * 20), right=(0,))])
    asker = Asker(items, Evaluation(context=12, on_overflow="cut"), chatter())
    with pytest.raises(DataError, match="f:1: a choice alone is longer than the 12 tokens of the context"):
        asker.choices(items.items[0])


def test_the_context_is_at_most_that_of_the_model():
    assert Asker(items_of([question(1)]), Evaluation(), chatter()).context == 512
    with pytest.raises(ConfigError, match="--context 100000 is more than the 512 tokens that the model can read"):
        Asker(items_of([question(1)]), Evaluation(context=100_000), chatter())
