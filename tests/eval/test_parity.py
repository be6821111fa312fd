"""The same items give the same numbers here and in the lm-evaluation-harness with its own model, HFLM."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmf_eval
import pytest
import torch
from lmf import Evaluation, Plugins
from lmf.evaluate.running import Evaluator, score
from lmf.evaluate.sources import find_tasks, limited, read_items
from lmf.generate.caches import runner_for
from lmf.generate.opening import Chatter, open_model
from lmf.sources import find_model
from lmf.testing import tiny_checkpoint
from lmf_eval.command import Wanted
from lmf_eval.order import make_order
from lmf_eval.results import items_file
from transformers import AutoTokenizer

pytest.importorskip("lm_eval", reason="the lm-evaluation-harness is missing: pip install lm-eval")

DATA = Path(lmf_eval.__file__).parent / "data/hellaswag.jsonl"
PLUGINS = Plugins()
OWN = "hellaswag_sample"
SOME = 40  # items that the real model is asked; benchmarks/evaluate.py asks it all of them
YAML = """
task: same_items
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
output_type: multiple_choice
test_split: test
fewshot_split: test
fewshot_config: {{sampler: first_n}}
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
CLOSED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}:{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)


@dataclass
class Found:
    """What was found of each item.

    Attributes:
        logprobs: Of each choice.
        decisions: Whether acc and acc_norm call it right.
    """

    logprobs: list[list[float]]
    decisions: list[tuple[float, float]]


@pytest.fixture
def yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The items as a task of the harness, which writes to no folder but this test's."""
    import datasets.config

    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / "task.yaml"
    file.write_text(YAML.format(data=DATA, cache=tmp_path / "cache"))
    return file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with larger weights, so that tokens depend on those before them, and with a template."""
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint(tmp_path_factory.mktemp("parity") / "tiny")
    weights: Any = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in weights.parameters():
            parameter *= 3 if parameter.ndim > 1 else 1
    weights.save_pretrained(folder)
    return _templated(folder, CLOSED)


def _templated(folder: Path, template: str) -> Path:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def theirs(
    model: str, yaml: Path, shots: int = 0, chat: bool = False, softmax: str | None = "float64", limit: int = 100
) -> Found:
    """Return what the harness finds with its own model.

    Its logits are those of the model in 32 bits. In its default, softmax and sums are in 32 bits, too; of the real
    model they are then off by up to 4e-4 of what 64 bits throughout give, and ours by 8e-5.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    evaluate: Any = lm_eval.simple_evaluate
    hflm: Any = HFLM
    found = evaluate(
        model=hflm(pretrained=model, dtype="float32", softmax_dtype=softmax, device="cpu", batch_size=8),
        tasks=["same_items"],
        num_fewshot=shots,
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=chat,
        task_manager=TaskManager(include_path=str(yaml.parent), include_defaults=False),
    )
    samples = sorted(found["samples"]["same_items"], key=lambda sample: sample["doc_id"])
    assert len(samples) == limit
    return Found(
        [[logprob for logprob, _ in sample["filtered_resps"]] for sample in samples],
        [(sample["acc"], sample["acc_norm"]) for sample in samples],
    )


def ours(chatter: Chatter, limit: int = 100, **how: Any) -> Found:
    """Return what lmf finds of its own task."""
    ((task, _),) = find_tasks([OWN], PLUGINS).values()
    items = limited(read_items(task, PLUGINS), limit)
    evaluator = Evaluator(items, Evaluation(on_overflow="cut", **how), chatter, runner_for(chatter.model))
    outcomes: dict[int, Any] = dict(done for ready in evaluator.run() for done in ready)
    found = Found([], [])
    for number, item in enumerate(items.items):
        figures = score(task, item, outcomes[number])
        found.logprobs.append(list(outcomes[number].logprobs))
        found.decisions.append((figures["acc"][0], figures["acc_norm"][0]))
    return found


def bridged(model: str, yaml: Path, out: Path, **how: Any) -> tuple[Found, Mapping[str, Any]]:
    """Return what the harness finds with our model, and the result that is reported."""
    from lmf_eval.harness import measure_harness
    from lmf_eval.opening import open_for

    order = make_order(model, Wanted(task=(f"lm-eval:{yaml}",), out=out), Evaluation(**how), PLUGINS)
    chatter = open_for(order)
    ((name, result),) = measure_harness(order, order.harness[0], chatter, runner_for(chatter.model))
    assert name == "lm-eval:same_items"
    lines = [json.loads(line) for line in items_file(out, name).read_text(encoding="utf-8").splitlines()]
    found = Found(
        [[logprob for logprob, _ in line["responses"]] for line in sorted(lines, key=lambda line: line["id"])],
        [tuple(line["scores"][name][0] for name in ("acc", "acc_norm")) for line in lines],  # type: ignore[misc]
    )
    return found, result


def furthest(one: Found, other: Found) -> float:
    """Return how far two log-likelihoods of a choice are apart at most."""
    assert len(one.logprobs) == len(other.logprobs) in (100, SOME)
    return max(
        abs(a - b)
        for first, second in zip(one.logprobs, other.logprobs, strict=True)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("shots", [0, 2])
def test_every_likelihood_and_decision_is_that_of_the_harness(shots, model, yaml, tmp_path):
    expected = theirs(str(model), yaml, shots)
    native = ours(open_model(str(model), PLUGINS), shots=shots)
    bridge, result = bridged(str(model), yaml, tmp_path / "out", shots=shots)
    print(f"\n  {shots} shots: off by {furthest(native, expected):.1e}, by the bridge {furthest(bridge, expected):.1e}")
    assert furthest(native, expected) <= 1e-4
    assert furthest(bridge, expected) <= 1e-4
    assert native.decisions == bridge.decisions == expected.decisions
    assert 0 < sum(right for right, _ in expected.decisions) < 100
    assert (result["items"], result["shots"], result["in"]) == (100, shots, "text")
    for place, name in enumerate(("acc", "acc_norm")):
        mean = sum(right[place] for right in expected.decisions) / 100
        assert result["figures"][name]["value"] == pytest.approx(mean)


@pytest.mark.parametrize("shots", [0, 2])
def test_in_a_template_they_are_those_of_the_harness_too(shots, model, yaml, tmp_path):
    expected = theirs(str(model), yaml, shots, chat=True)
    native = ours(open_model(str(model), PLUGINS), shots=shots, template="auto")
    bridge, result = bridged(str(model), yaml, tmp_path / "out", shots=shots, template="auto")
    print(f"\n  {shots} shots: off by {furthest(native, expected):.1e}, by the bridge {furthest(bridge, expected):.1e}")
    assert furthest(native, expected) <= 1e-4
    assert furthest(bridge, expected) <= 1e-4
    assert native.decisions == bridge.decisions == expected.decisions
    assert result["in"] != "text"


def test_white_space_at_the_end_of_a_template_is_no_part_of_a_reply(model, yaml, tmp_path):
    """The harness lets the reply begin with it, so all likelihoods of an item are off by that of the white space."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    _templated(folder, PLUGINS.templates["chatml"].jinja())
    expected = theirs(str(folder), yaml, chat=True)
    native = ours(open_model(str(folder), PLUGINS), template="auto")
    bridge, _ = bridged(str(folder), yaml, tmp_path / "out", template="auto")
    assert furthest(bridge, native) <= 1e-4
    assert bridge.decisions == native.decisions
    for mine, other in zip(native.logprobs, expected.logprobs, strict=True):
        space = [a - b for a, b in zip(mine, other, strict=True)]
        assert min(space) > 0.1
        assert max(space) - min(space) <= 1e-4
    assert [right for right, _ in native.decisions] == [right for right, _ in expected.decisions]


def test_rolling_likelihoods_and_greedy_replies_are_those_of_the_harness(model):
    """A text longer than the context is read in windows there and here."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lmf_eval.harness import Harnessed

    chatter = open_model(str(model), PLUGINS)
    mine = Harnessed(chatter, runner_for(chatter.model), None, 60)
    hflm: Any = HFLM
    other = hflm(pretrained=str(model), dtype="float32", softmax_dtype="float64", device="cpu", max_length=60)
    texts = [json.loads(line)["query"] for line in DATA.read_text(encoding="utf-8").splitlines()[:20]]

    def asked(kind: Any, *more: Any) -> list[Any]:
        return [Instance(kind, {}, (text, *more), 0) for text in texts]

    ours, others = (each.loglikelihood_rolling(asked("loglikelihood_rolling")) for each in (mine, other))
    assert ours == pytest.approx(others, abs=1e-4)
    how = {"until": ["\n", "e"], "max_gen_toks": 12}
    ours, others = (each.generate_until(asked("generate_until", how)) for each in (mine, other))
    assert ours == others
    assert len({*ours}) > 10


def test_a_continuation_that_a_token_swallows_is_still_scored(model):
    """The harness's own model gives up here; without a token to score it would be certain."""
    from lm_eval.api.instance import Instance
    from lmf_eval.harness import Harnessed

    chatter = open_model(str(model), PLUGINS)
    mine = Harnessed(chatter, runner_for(chatter.model), None, None)
    ((swallowed, _), (other, _)) = mine.loglikelihood(
        [Instance("loglikelihood", {}, ("hel", rest), number) for number, rest in enumerate(("lo", "p"))]
    )
    assert swallowed < other < 0


@pytest.mark.real
def test_every_likelihood_and_decision_of_the_real_model_is_that_of_the_harness(yaml):
    source = find_model("smollm2-135m", PLUGINS)
    expected = theirs(source.path, yaml, limit=SOME)
    native = ours(open_model("smollm2-135m", PLUGINS), limit=SOME)
    print(f"\n  off by {furthest(native, expected):.1e}")
    assert furthest(native, expected) <= 1e-4
    assert native.decisions == expected.decisions
