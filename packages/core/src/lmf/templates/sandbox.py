"""Runs chat templates: Jinja, as transformers runs it, with bounds on time, text and memory.

Chat templates come with models, from strangers. Jinja's sandbox keeps them from Python's
internals, but not from writing without end. Here every loop looks at the clock, and every
operation that makes text or lists large in one go is bounded.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

SECONDS = 2.0  # for one rendering, and another second for each MB that goes in
CHARACTERS = 1_000_000  # that one rendering may write, and eight times what goes in
NUMBER = 10_000  # largest width, and most bits of a number
DATE = datetime(2024, 7, 26)  # what a template takes for today: the same data give the same ids on every day


class Rendering(NamedTuple):
    """What a template wrote.

    Attributes:
        text: All of it.
        generated: Where its ``{% generation %}`` blocks stand, as (start, end); None if some were lost in a macro.
    """

    text: str
    generated: list[tuple[int, int]] | None


class Program:
    """A compiled chat template.

    Raises:
        TemplateError: The text is not valid Jinja.
    """

    def __init__(self, text: str):
        self._template = _environment().from_string(text)
        self.marked = bool(re.search(r"\{%-?\s*generation\s*-?%\}", text))

    def render(self, context: Mapping[str, Any], size: int) -> Rendering:
        """Render.

        Args:
            context: The variables of the template.
            size: Number of characters that go in; the bounds grow with it.

        Raises:
            TemplateError: The template refuses the conversation, fails, or writes or runs without end.
        """
        budget = _Budget(time.monotonic() + SECONDS + size / 1e6, CHARACTERS + 8 * size)
        token = _BUDGET.set(budget)
        chunks: list[str] = []
        generated: list[tuple[int, int]] = []
        length = 0
        try:
            for chunk in self._template.root_render_func(self._template.new_context(dict(context))):
                if isinstance(chunk, _Generated):
                    generated.append((length, length + len(chunk)))
                chunks.append(chunk)
                length += len(chunk)
                budget.check()
        except TemplateError:
            raise
        except RecursionError:
            raise TemplateError("it calls itself without end") from None
        except Exception as error:  # of any type: the template does with its values what it likes
            raise TemplateError(f"{type(error).__name__}: {error}") from error
        finally:
            _BUDGET.reset(token)
        return Rendering("".join(chunks), generated if len(generated) == budget.generated else None)


@lru_cache(maxsize=64)
def compiled(text: str) -> Program:
    """Return the program of a chat template."""
    return Program(text)


class _Budget:
    def __init__(self, deadline: float, characters: int):
        self.deadline = deadline
        self.characters = characters
        self.generated = 0  # generation blocks that ran

    def check(self) -> None:
        if time.monotonic() > self.deadline:
            raise SecurityError(f"it ran for more than {SECONDS:g} seconds")

    def write(self, value: Any) -> Any:
        if isinstance(value, str):
            self.characters -= len(value)
            if self.characters < 0:
                raise SecurityError(f"it wrote more than {CHARACTERS:,} characters beyond what it was given")
        return value


_BUDGET: ContextVar[_Budget] = ContextVar("budget")


class _Generated(str):
    """What a generation block wrote."""

    __slots__ = ()


class _Generation(Extension):
    """``{% generation %}``: the stretch that the assistant generates."""

    tags = {"generation"}  # noqa: RUF012 (Jinja reads it from the class)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        _BUDGET.get().generated += 1
        return _Generated(caller())


class _Bounds(NodeTransformer):
    """Puts a look at the clock into every loop, and counts what is written or kept."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filter("_watched", node.iter)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        node.nodes = [n if isinstance(n, nodes.TemplateData) else _filter("_counted", n) for n in node.nodes]
        return node

    def visit_Assign(self, node: nodes.Assign) -> nodes.Assign:
        self.generic_visit(node)
        node.node = _filter("_counted", node.node)
        return node


def _filter(name: str, node: Any) -> Any:
    return nodes.Filter(node, name, [], [], None, None).set_lineno(node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Bounds().visit(tree)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            _bounded_sum(left, right)
        elif operator == "%" and isinstance(left, str):
            _bounded(left, right)
        elif operator == "**" or (operator == "*" and not _small_product(left, right)):
            _bounded_power(left, right) if operator == "**" else _too_large()
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _BUDGET.get().check()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            _bounded(owner, *args, **kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped:
            _bounded(value.__self__)
        return wrapped


def _watched(items: Iterable[Any]) -> Iterator[Any]:
    budget = _BUDGET.get()
    for item in items:
        budget.check()
        yield item


def _counted(value: Any) -> Any:
    return _BUDGET.get().write(value)


def _bounded(*values: Any, **named: Any) -> None:
    """Refuse widths beyond reason among the arguments of what makes text, and joins and replacements that explode."""
    text, *arguments = *values, *named.values()
    for value in arguments:
        if isinstance(value, int) and abs(value) > NUMBER:
            _too_large()
    if isinstance(text, str) and re.search(r"[%{][^%{}]*\d{5}", text):  # a width in a format
        _too_large()
    if len(arguments) > 1 and isinstance(text, str) and all(isinstance(a, str) for a in arguments[:2]):
        old, new = arguments[:2]
        if text.count(old) * len(new) > CHARACTERS + 8 * len(text):
            _too_large()
    if len(arguments) == 1 and isinstance(arguments[0], list | tuple):
        parts = arguments[0]
        if sum(len(part) + len(text) for part in parts if isinstance(part, str)) > 8 * CHARACTERS:
            _too_large()


def _limited(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that checks its arguments first."""
    environment = getattr(function, "jinja_pass_arg", None)

    def checked(*args: Any, **kwargs: Any) -> Any:
        _bounded(*(args[1:] if environment else args), **kwargs)
        return function(*args, **kwargs)

    if environment:
        checked.jinja_pass_arg = environment  # type: ignore[attr-defined]
    return checked


def _join(function: Callable[..., Any]) -> Callable[..., Any]:
    def join(eval_ctx: Any, value: Any, d: str = "", attribute: Any = None) -> Any:
        parts = list(value)
        if attribute is None:
            _bounded(str(d), [str(part) for part in parts])
        return function(eval_ctx, parts, d, attribute)

    join.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return join


def _bounded_sum(left: Any, right: Any) -> None:
    kinds = (str, list, tuple)
    room = 8 * CHARACTERS + _BUDGET.get().characters
    if isinstance(left, kinds) and isinstance(right, kinds) and len(left) + len(right) > room:
        _too_large()


def _small_product(left: Any, right: Any) -> bool:
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() + right.bit_length() <= NUMBER
    for text, count in ((left, right), (right, left)):
        if isinstance(text, str | list | tuple) and isinstance(count, int):
            return len(text) * count <= CHARACTERS
    return True


def _bounded_power(base: Any, exponent: Any) -> None:
    bits = base.bit_length() if isinstance(base, int) else 1
    if isinstance(exponent, int | float) and bits * abs(exponent) > NUMBER:
        _too_large()


def _too_large() -> None:
    raise SecurityError("it makes a text, a list or a number without reasonable bounds")


def _raise(message: Any) -> None:
    raise TemplateError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if isinstance(indent, int) and indent > 100:
        _too_large()
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Namespace(Namespace):
    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"the name {name!r} begins with an underscore")
        super().__setitem__(name, _counted(value))


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters |= {"tojson": _to_json, "_watched": _watched, "_counted": _counted}
    for name in ("center", "indent", "format", "wordwrap", "truncate", "batch", "slice", "replace", "round"):
        environment.filters[name] = _limited(environment.filters[name])
    environment.filters["join"] = _join(environment.filters["join"])
    del environment.globals["lipsum"]
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda form: DATE.strftime(form),
        "namespace": _Namespace,
    }
    return environment
