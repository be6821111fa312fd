"""Scales the rotary positions of a model, so that it reads longer texts than it was trained on.

All of it is said in the model's configuration, in the words of transformers, so that a saved model computes the same in
plain transformers and in vLLM. With d the rotated width of a head and s the factor, a pair i of its columns turns by
theta ** (-2i / d) per position, and

- ``linear`` (arXiv:2306.15595; LMFlow's ``rope_pi_ratio``) divides all angles by s.
- ``ntk`` (LMFlow's ``rope_ntk_ratio``) multiplies theta by s ** (d / (d - 2)): fast pairs stay, slow ones slow down.
- ``dynamic`` is ``ntk`` by the length of the text: nothing changes up to the trained length.
- ``yarn`` (arXiv:2309.00071) divides the angles of slow pairs, keeps those of fast ones, and sharpens attention.
- ``llama3`` (Llama 3.1) divides and keeps by other bounds, and leaves attention as it is.

vLLM multiplies ``max_position_embeddings`` by the factor of ``linear`` and ``dynamic``, and transformers takes that
of ``dynamic`` for the trained length; so these two keep it, and ``positions`` multiplies as vLLM does. The others have
the longer length there. ``ntk`` is no type of transformers, but another ``rope_theta``; ``NTK`` tells of it.

The two differ in ``dynamic`` alone: transformers turns by the length that a text has, vLLM always by the longest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .errors import ConfigError

Rope = Literal["linear", "ntk", "dynamic", "yarn", "llama3"]
ROPE = "Scale the rotary positions, for texts longer than in the model's training; needs --rope-factor."
FACTOR = "How many times as long texts are to be; needs --rope."
NTK = "rope_ntk_factor"  # the key of a configuration for what was put into its rope_theta
LATER = ("linear", "dynamic")  # whose factor is not in max_position_embeddings yet


@dataclass(frozen=True, slots=True)
class Scaling:
    """How positions are scaled.

    Attributes:
        type: The way.
        factor: How many times as long texts are to be.
    """

    type: str
    factor: float

    def __str__(self) -> str:
        return f"--rope {self.type} --rope-factor {self.factor:g}"


def scaling_of(rope: str | None, factor: float | None) -> Scaling | None:
    """Return what two settings mean together.

    Raises:
        ConfigError: There is only one of them.
    """
    if rope is None and factor is None:
        return None
    if rope is None:
        raise ConfigError(f"--rope-factor {factor:g} needs the way to scale positions; add --rope yarn, or another.")
    if factor is None:
        raise ConfigError(f"--rope {rope} needs to know how many times as long texts are to be; add --rope-factor 2.")
    return Scaling(rope, float(factor))


def positions(config: Any) -> int | None:
    """Return how many tokens a model reads by its configuration; None if that has no limit."""
    text = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    return int(most * (rope.get("factor") or 1)) if most and rope.get("rope_type") in LATER else most


def scaled_by(config: Any) -> Scaling | None:
    """Return how the positions of a model are scaled already."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    if getattr(text, NTK, None):
        return Scaling("ntk", getattr(text, NTK))
    kind = rope.get("rope_type", "default")
    return None if kind == "default" else Scaling(kind, rope.get("factor") or 1.0)


def scale(config: Any, scaling: Scaling, name: str) -> None:
    """Scale the positions of a model, unless it has been done just so.

    Args:
        config: Its configuration, which is changed.
        scaling: How.
        name: What the user calls the model.

    Raises:
        ConfigError: The model has no such positions, or they are scaled otherwise.
    """
    text = config.get_text_config()
    rope, length = getattr(text, "rope_parameters", None), getattr(text, "max_position_embeddings", None)
    if not rope or not length:
        raise ConfigError(f"{name} has no rotary positions ({text.model_type}), so {scaling} cannot scale them.")
    if "rope_theta" not in rope:
        kinds = ", ".join(rope)
        raise ConfigError(
            f"{name} turns positions in another way in each kind of layer ({kinds}), and {scaling} has one way for all."
        )
    if before := scaled_by(config):
        if before == scaling:
            return
        raise ConfigError(
            f"{name} has its positions scaled already, as by {before}; leave --rope out, or take what it was made of."
        )
    rope = dict(rope)
    if scaling.type == "ntk":
        width = rotated(text)
        rope["rope_theta"] = float(rope["rope_theta"]) * scaling.factor ** (width / (width - 2))
        setattr(text, NTK, scaling.factor)
    else:
        rope |= {"rope_type": scaling.type, "factor": scaling.factor}
        rope.pop("type", None)  # the older name of rope_type
    if scaling.type in ("yarn", "llama3"):
        rope["original_max_position_embeddings"] = length
        if hasattr(text, "original_max_position_embeddings"):  # which transformers would take instead
            text.original_max_position_embeddings = length
    if scaling.type == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    text.rope_parameters = rope
    if scaling.type not in LATER:
        text.max_position_embeddings = int(length * scaling.factor)


def rotated(text: Any) -> int:
    """Return how many columns of a head are rotated."""
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(width * text.rope_parameters.get("partial_rotary_factor", 1.0))


def lengthen(tokenizer: Any, config: Any) -> None:
    """Let a tokenizer know how long texts may be now, which it may cut or warn of otherwise."""
    most = positions(config)
    if most and tokenizer.model_max_length < most:
        tokenizer.model_max_length = most
