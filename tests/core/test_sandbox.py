"""Chat templates of strangers: what hostile ones are kept from, and what honest ones are not."""

import time
import tracemalloc
from datetime import datetime

import pytest
from jinja2 import TemplateError
from lmf import Conversation, DataError, JinjaTemplate, Message
from lmf.templates.sandbox import DATE, compiled
from transformers.utils.chat_template_utils import _compile_jinja_template

LARGE = "it makes a text, a list or a number without reasonable bounds"
LONG = "it wrote more than 1,000,000 characters beyond what it was given"
SLOW = "it ran for more than 2 seconds"
ENDLESS = "it calls itself without end"
TALK = Conversation((Message("user", "Hi"), Message("assistant", "Hello!")))

# what a template says, and why it is refused
HOSTILE = {
    "loops in loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        SLOW,
    ),
    "a text many times": ("{{ 'a' * 10**9 }}", LARGE),
    "a list many times": ("{{ ([1] * 10**9) | length }}", LARGE),
    "a text doubled by a loop": (
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x | length }}",
        LONG,
    ),
    "a text doubled with ~": (
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x | length }}",
        LONG,
    ),
    "a text many times with ~": (
        "{% set x = 'a' * 1000000 %}{{ (" + " ~ ".join(["x"] * 2000) + ") | length }}",
        LARGE,
    ),
    "a list doubled by a loop": (
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x | length }}",
        LARGE,
    ),
    "plain text in a loop": ("{% for i in range(99999) %}" + "a" * 10_000 + "{% endfor %}", LONG),
    "plain text in a block": (
        "{% set x %}{% for i in range(99999) %}" + "a" * 10_000 + "{% endfor %}{% endset %}{{ x | length }}",
        LONG,
    ),
    "a generation block": (
        "{% generation %}{% for i in range(99999) %}" + "a" * 10_000 + "{% endfor %}{% endgeneration %}",
        LONG,
    ),
    "a macro that calls itself": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", ENDLESS),
    "a macro that calls itself twice": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        SLOW,
    ),
    "a loop that calls itself": ("{% for i in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}", ENDLESS),
    "brackets in brackets": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "it is nested too deep"),
    "lists in lists": (
        "{% set n = namespace(x=[]) %}{% for i in range(9999) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}",
        ENDLESS,
    ),
    "a power": ("{{ 10 ** (10 ** 10) }}", LARGE),
    "a root of a power": ("{{ 9 ** (999 ** 2) ** 0.5 }}", LARGE),
    "a product of large numbers": (
        "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
        LARGE,
    ),
    "a width in a format": ("{{ '%1000000000d' % 1 }}", LARGE),
    "a width as an argument": ("{{ '%*d' % (1000000000, 1) }}", LARGE),
    "a width in braces": ("{{ '{:>1000000000}'.format(1) }}", LARGE),
    "a width in braces as an argument": ("{{ '{:{a[0]}}'.format(1, a=[1000000000]) }}", LARGE),
    "a width for the filter": ("{{ '%*d' | format(1000000000, 1) }}", LARGE),
    "a text in a format many times": ("{{ ('%(a)s' * 9999) % {'a': 'a' * 1000000} }}", LARGE),
    "center": ("{{ 'a'.center(10**9) }}", LARGE),
    "center, the filter": ("{{ 'a' | center(10**9) }}", LARGE),
    "center for each": ("{{ (['a'] * 900000) | map('center', 9999) | list | length }}", LARGE),
    "zfill": ("{{ '1'.zfill(10**9) }}", LARGE),
    "tabs": ("{{ ('\\t' * 1000000).expandtabs(10000) | length }}", "attribute 'expandtabs' of 'str' object is unsafe"),
    "letters for letters": (
        "{{ ('a' * 1000000).translate({97: 'a' * 1000000}) | length }}",
        "attribute 'translate' of 'str' object is unsafe",
    ),
    "bytes": ("{{ ('a'.encode() * 10**9) | length }}", "attribute 'encode' of 'str' object is unsafe"),
    "a number in bytes": ("{{ (1).to_bytes(10**9, 'big') }}", "attribute 'to_bytes' of 'int' object is unsafe"),
    "join": ("{{ (['a' * 1000] * 900000) | join('b' * 1000) | length }}", LARGE),
    "join, the method": ("{{ ('b' * 1000).join(['a' * 1000] * 900000) | length }}", LARGE),
    "join of what is made meanwhile": ("{{ ''.join((['a' * 1000000] * 1000) | map('string')) | length }}", LARGE),
    "replace": ("{{ ('a' * 100000).replace('a', 'b' * 100000) | length }}", LARGE),
    "replace nothing": ("{{ ('a' * 100000) | replace('', 'b' * 100000) | length }}", LARGE),
    "indent": ("{{ ('\\n' * 1000000) | indent(10000, true, true) | length }}", LARGE),
    "indent with a text": ("{{ ('\\n' * 100000) | indent('a' * 100000) | length }}", LARGE),
    "JSON with wide lines": ("{{ ([1] * 100000) | tojson(indent=100000) | length }}", LARGE),
    "JSON of a list many times": ("{{ (['a' * 1000000] * 1000) | tojson | length }}", LARGE),
    "a list as text": ("{{ ['a' * 1000000] * 1000 }}", LONG),
    "a list as text, the filter": ("{{ (['a' * 1000000] * 1000) | string | length }}", LARGE),
    "a list in a format": ("{{ ('%s' % [['a' * 1000000] * 1000]) | length }}", LARGE),
    "sum of lists": ("{{ ([[1] * 10000] * 10) | sum(start=[]) | length }}", "it sums what are no numbers"),
    "upper for each": ("{{ (['a' * 1000000] * 1000) | map('upper') | list | length }}", LARGE),
    "sort": ("{{ (['a' * 1000000] * 1000) | sort | length }}", LARGE),
    "words of each": ("{{ (['a b ' * 200000] * 1000) | map('wordcount') | sum }}", SLOW),
    "slices": (
        "{% set x = 'a' * 1000000 %}{% set n = namespace(x=[]) %}"
        "{% for i in range(9999) %}{% set n.x = n.x + [x[i:]] %}{% endfor %}",
        LARGE,
    ),
    "split": (
        "{% set n = namespace(x=[]) %}"
        "{% for i in range(9999) %}{% set n.x = n.x + [('a,' * 100000).split(',')] %}{% endfor %}",
        LARGE,
    ),
    "equal lists of equal lists": (
        "{% set a = [0] * 1000 %}{% set b = [0] * 1000 %}"
        + "{% set a = [a] * 1000 %}{% set b = [b] * 1000 %}" * 3
        + "{{ a == b }}",
        LARGE,
    ),
    "a huge range": ("{{ range(10**9) | list | length }}", "Range too big"),
    "the class of a text": ("{{ ''.__class__.__mro__ }}", "attribute '__class__' of 'str' object is unsafe"),
    "the class of a message": (
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "attribute '__class__' of 'list' object is unsafe",
    ),
    "the globals of a function": (
        "{{ raise_exception.__globals__['json'] }}",
        "attribute '__globals__' of 'function' object is unsafe",
    ),
    "the globals of a macro": (
        "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
        "attribute '__init__' of 'Macro' object is unsafe",
    ),
    "a private name of a namespace": (
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "the name '__class__' begins with an underscore",
    ),
    "a change of the messages": ("{{ messages.append(1) }}", "attribute 'append' of 'list' object is unsafe"),
    "a file": ("{% include '/etc/passwd' %}", "no loader for this environment"),
}


def refusal(text: str) -> str:
    """Return the reason why a template is refused."""
    template = JinjaTemplate(name="evil", source="https://example.com", text=text, stop=())
    with pytest.raises(DataError) as told:
        template.text_of(TALK)
    assert str(told.value).startswith("the template 'evil' ")
    return str(told.value)


def render(text: str, size: int = 1000, **variables: object) -> str:
    return compiled(text).render(variables, size).text


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_template_is_refused_by_name_soon_and_in_little_memory(what: str) -> None:
    text, reason = HOSTILE[what]
    refusal("{{ raise_exception('what is loaded once is not counted') }}")
    begin = time.process_time()
    tracemalloc.start()
    try:
        told = refusal(text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reason in told
    assert time.process_time() - begin < 3
    assert peak < 150e6


@pytest.mark.parametrize(
    "text", ["{{ '{0.__class__}'.format('') }}", "{{ '' | attr('__class__') }}", "{{ ''['__class__'] }}"]
)
def test_a_private_name_behind_a_back_door_is_not_there(text: str) -> None:
    assert render(text) == ""


def test_a_later_rendering_has_all_its_room_again() -> None:
    text = "{{ 'a' * 900000 }}"
    assert [len(render(text)) for _ in range(20)] == [900_000] * 20


def test_the_bounds_grow_with_what_goes_in() -> None:
    content = "word " * 1_000_000
    text = "{% for m in messages %}{{ '<' ~ m.content.strip() + '>' }}{% endfor %}"
    talk = Conversation((Message("user", content),))
    template = JinjaTemplate(name="honest", source="https://example.com", text=text, stop=())
    assert template.text_of(talk) == f"<{content.strip()}>"


@pytest.mark.parametrize(
    "content",
    ["{'id': 12345678}", "100 % 12345678", "%s %(a)s {0} {a[0]} {{}}", "%1000000000d {:>1000000000}", "a\tb" * 1000],
)
@pytest.mark.parametrize(
    "how",
    [
        "messages[0].content.strip().split('</think>')[-1]",
        "messages[0].content | trim | replace('x', 'y') | string",
        "'%s' % messages[0].content",
        "'{}'.format(messages[0].content)",
        "[messages[0].content] | join(', ')",
        "messages[0].content[:9999]",
    ],
)
def test_what_a_message_says_is_no_reason_to_refuse_it(how: str, content: str) -> None:
    assert render(f"{{{{ {how} }}}}", messages=[{"content": content}]) == content


def test_the_day_is_always_the_same() -> None:
    assert datetime(2024, 7, 26) == DATE
    assert render("{{ strftime_now('%d %B %Y') }}") == "26 July 2024"


def test_the_error_that_a_template_raises_is_told() -> None:
    with pytest.raises(TemplateError, match=r"^one turn only$"):
        render("{{ raise_exception('one turn only') }}")


def test_what_is_no_jinja_is_refused_with_the_line() -> None:
    assert refusal("a\n{% if %}").startswith("the template 'evil' is not valid Jinja: line 2: Expected an expression")
    assert refusal("{{ x | random }}").endswith("line 1: No filter named 'random'.")


def test_filters_tests_and_names_are_those_of_transformers_but_for_a_few() -> None:
    theirs, ours = (program("") for program in (_compile_jinja_template, lambda text: compiled(text)._template))
    missing = set(theirs.environment.filters) - set(ours.environment.filters)
    assert missing == {"filesizeformat", "pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr"}
    assert set(theirs.environment.tests) == set(ours.environment.tests)
    assert set(theirs.environment.globals) - set(ours.environment.globals) == {"lipsum"}


@pytest.mark.parametrize(
    "text",
    [
        "{{ tools | tojson }}",
        "{{ tools | tojson(indent=4) }}",
        "{{ tools | tojson(separators=(',', ':'), sort_keys=true) }}",
        "{{ tools ~ none ~ 1 ~ true ~ missing }}",
        "{{ [3, 1, 2] | sort | join(', ') }} {{ (1, 2) | sum }} {{ [1, 2] | map('string') | join }}",
        "{{ 'a b' | title }} {{ 'A' | lower }} {{ '%s-%d' | format('x', 3) }} {{ 'x' | center(5) }}",
        "{{ 'abc'[1:] }} {{ 'abc'[::-1] }} {{ [1, 2, 3][:-1] }} {{ 2 ** 10 }} {{ 'ab' * 3 }} {{ 7 % 3 }}",
        "{% for a, b in tools[0].items() %}{{ loop.index }}{{ a }}{% if loop.last %}{% break %}{% endif %}{% endfor %}",
        "{% set x %}a{{ 1 }}b{% endset %}{{ x | upper }}{% filter lower %}ABC{% endfilter %}",
        "{% macro m(a, b=2) %}({{ a }}{{ b }}{{ caller() if caller }}){% endmacro %}{{ m(1) }}",
        "{% macro m() %}({{ caller() }}){% endmacro %}{% call m() %}!{% endcall %}",
        "{% set n = namespace(i=0) %}{% for x in 'abc' %}{% set n.i = n.i + 1 %}{% endfor %}{{ n.i }}",
        "{{ 'a' in 'abc' }} {{ 1 < 2 < 3 }} {{ [1] == [1] }} {{ 'x' is in(['x']) }} {{ 3 is eq 3 }} {{ y is defined }}",
        "{{ 'é｜🙂' | indent(2, true) }} {{ 'a\\nb' | indent(2) }}",
        "{{ 'aXb' | replace('X', '-') }} {{ 'aXb'.replace('X', '-') }} {{ 'X' | replace('', 'ab', 1) }}",
        "{{ tools | map(attribute='name') | list }} {{ tools | selectattr('name', 'eq', 'add') | list | length }}",
        "{{ '{} {a}'.format(1, a=2) }} {{ ', '.join(['a', 'b']) }}",
        "{{ tools[0] | dictsort }} {{ tools[0] | items | list }} {{ dict(a=1, **tools[0]) }}",
    ],
)  # fmt: skip
def test_an_honest_template_writes_what_transformers_writes(text: str) -> None:
    tools = [{"name": "add", "parameters": {"a": ["ü", 1.5, None, True]}}]
    assert render(text, tools=tools) == _compile_jinja_template(text).render(tools=tools)


def test_generation_blocks_are_found_where_they_stand() -> None:
    program = compiled("a{% generation %}b{{ x }}{% endgeneration %}c{% generation %}{% endgeneration %}")
    assert program.marked
    assert program.render({"x": "yz"}, 10) == ("abyzc", [(1, 4), (5, 5)])


def test_generation_blocks_in_a_macro_are_lost_and_said_to_be() -> None:
    program = compiled("{% macro m() %}{% generation %}b{% endgeneration %}{% endmacro %}{{ m() }}")
    assert program.render({}, 10) == ("b", None)
