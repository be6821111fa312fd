"""What the core provides as a plugin of its own."""

import math

import pytest
from lmf import Plugins

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def plugins():
    return Plugins(only=())


def test_the_core_provides_its_formats_one_optimizer_and_the_usual_figures_as_a_plugin(plugins):
    (core,) = plugins.installed
    assert (core.package, core.problem) == ("lmf-core", None)
    assert core.provides == {
        "optimizer": ["adamw"],
        "data format": [
            *("messages", "sharegpt", "alpaca", "text2text", "completion", "prompt", "text"),
            *("preference", "messages-preference", "sharegpt-preference", "alpaca-preference"),
            *("alpaca-pair", "response-pair", "transcript-preference"),
            *("unpaired", "messages-unpaired", "sharegpt-unpaired", "alpaca-unpaired", "ranking"),
        ],
        "metric": [
            *("acc", "acc_norm", "acc_bytes", "acc_tokens", "exact"),
            *("nll", "nll_per_token", "nll_per_byte", "nll_per_word", "perplexity"),
            *("right_share", "lmflow_perplexity"),
        ],
    }


def groups(*parameters, rate=0.1, decay=0.01):
    return [{"params": list(parameters), "lr": rate, "weight_decay": decay}]


def adamw(start, gradients, rate, decay):
    """Algorithm 2 of arXiv:1711.05101 for one number, with beta 0.9 and 0.999 and epsilon 1e-8."""
    value, mean, square = start, 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        update = (mean / (1 - 0.9**step)) / (math.sqrt(square / (1 - 0.999**step)) + 1e-8)
        value -= rate * (update + decay * value)
    return value


def test_adamw_steps_as_in_its_paper(plugins):
    decayed, plain = (torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64)) for _ in range(2))
    optimizer = plugins.optimizers["adamw"].build(groups(decayed) + groups(plain, rate=0.2, decay=0.0))
    gradients = [0.5, -3.0, 1e-6, 4.0]
    for gradient in gradients:
        for parameter in (decayed, plain):
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    assert decayed.item() == pytest.approx(adamw(2.0, gradients, rate=0.1, decay=0.01), rel=1e-12)
    assert plain.item() == pytest.approx(adamw(2.0, gradients, rate=0.2, decay=0.0), rel=1e-12)


def test_adamw_is_fused_where_torch_can_and_only_there(plugins):
    here, nowhere = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2, device="meta"))
    build = plugins.optimizers["adamw"].build
    assert build(groups(here)).defaults["fused"] is True
    for parameters in ([nowhere], [here, nowhere]):
        optimizer = build(groups(*parameters))
        assert not optimizer.defaults["fused"]
    nowhere.grad = torch.ones_like(nowhere)
    build(groups(nowhere)).step()  # a fused one would raise RuntimeError
    with pytest.raises(RuntimeError, match="fused"):
        torch.optim.AdamW([nowhere], fused=True).step()
