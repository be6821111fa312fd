"""Runs chat templates: Jinja, as transformers runs it, with bounds on time, text and memory.

Chat templates come with models, from strangers. Jinja's sandbox keeps them from Python's
internals, but not from writing without end. Here every loop looks at the clock, and every
operation that makes text or lists large in one go is bounded (``bounds``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from . import bounds

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
        TemplateSyntaxError: The text is not valid Jinja.
    """

    def __init__(self, text: str):
        try:
            self._template = _environment().from_string(text)
        except RecursionError:
            raise TemplateSyntaxError("it is nested too deep", 1) from None
        self.marked = bool(re.search(r"\{%-?\s*generation\s*-?%\}", text))

    def render(self, context: Mapping[str, Any], size: int) -> Rendering:
        """Render.

        Args:
            context: The variables of the template.
            size: Number of characters that go in; the bounds grow with it.

        Raises:
            TemplateError: The template refuses the conversation, fails, or writes or runs without end.
        """
        budget = bounds.Budget(size)
        token = bounds.BUDGET.set(budget)
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
            bounds.BUDGET.reset(token)
        return Rendering("".join(chunks), generated if len(generated) == budget.generated else None)


@lru_cache(maxsize=64)
def compiled(text: str) -> Program:
    """Return the program of a chat template."""
    return Program(text)


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
        bounds.BUDGET.get().generated += 1
        return _Generated(caller())


class _Bounds(NodeTransformer):
    """Puts a look at the clock into every loop, and counts what is written, kept, put together or cut out."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filter("_watched", node.iter)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        texts = (nodes.Const(n.data, lineno=n.lineno) if isinstance(n, nodes.TemplateData) else n for n in node.nodes)
        node.nodes = [_filter("_counted", text) for text in texts]
        return node

    def visit_Assign(self, node: nodes.Assign) -> nodes.Assign:
        self.generic_visit(node)
        node.node = _filter("_kept", node.node)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _filter("_concat", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _filter("_made", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _comparable(node.expr)
        for operand in node.ops:
            operand.expr = _comparable(operand.expr)
        return node


def _filter(name: str, node: Any) -> Any:
    return nodes.Filter(node, name, [], [], None, None).set_lineno(node.lineno)


def _comparable(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _filter("_comparable", node)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Bounds().visit(tree)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _METHODS and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        bounds.check_operation(operator, left, right)
        return bounds.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        bounds.BUDGET.get().check()
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if not isinstance(owner, str | bytes | list | tuple | dict):
            return super().call(__context, __obj, *args, **kwargs)
        if name == "join" and args:
            args = (list(args[0]),)
            bounds.check_join(owner, args[0])
        elif name == "replace" and len(args) > 1:
            bounds.check_replace(owner, *args[:2])
        elif name != "format":
            bounds.check_width(*args, *kwargs.values())
            bounds.room(bounds.weight(args))
        return bounds.made(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def form(*args: Any, **kwargs: Any) -> str:
            bounds.check_format(value.__self__, [args, kwargs])
            return wrapped(*args, **kwargs)

        return form


# methods that make much of little, and that no chat template needs
_METHODS = {"translate", "maketrans", "expandtabs", "encode", "to_bytes", "from_bytes", "format_map"}
# and filters; random would give other ids every time
_FILTERS = ("urlize", "xmlattr", "wordwrap", "pprint", "striptags", "filesizeformat", "random")
# filters that look at no more of a value than its items
_SHALLOW = {"length", "count", "first", "last", "map", "select", "selectattr", "reject", "rejectattr", "default", "d"}
_SHALLOW |= {"items", "list", "reverse", "safe", "abs", "int", "float", "round", "attr", "join", "replace", "format"}


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that checks its arguments first and counts what it made."""
    passed = getattr(function, "jinja_pass_arg", None)

    def checked(*args: Any, **kwargs: Any) -> Any:
        bounds.BUDGET.get().check()
        value, *rest = args[1:] if passed else args
        bounds.check_width(*rest, *kwargs.values())
        if name not in _SHALLOW:
            bounds.room(bounds.weight(value))
        if check := _CHECKS.get(name):
            value = check(value, *rest, **kwargs)
        return bounds.made(function(*((args[0],) if passed else ()), value, *rest, **kwargs))

    if passed:
        checked.jinja_pass_arg = passed  # type: ignore[attr-defined]
    return checked


def _check_join(value: Any, d: str = "", attribute: Any = None) -> Any:
    parts = list(value)
    bounds.check_join(d, parts)
    return parts


def _check_replace(value: Any, old: Any, new: Any, count: int | None = None) -> Any:
    bounds.room(bounds.weight(value))
    bounds.check_replace(str(value), old, new)
    return value


def _check_format(value: Any, *args: Any, **kwargs: Any) -> Any:
    bounds.check_format(value, [args, kwargs])
    return value


def _check_indent(value: Any, width: Any = 4, *flags: Any, **more: Any) -> Any:
    text = str(value)
    bounds.room(len(text) + len(text.splitlines()) * (len(width) if isinstance(width, str) else width))
    return value


def _check_sum(value: Any, attribute: Any = None, start: Any = 0) -> Any:
    if not isinstance(start, int | float):
        raise SecurityError("it sums what are no numbers")
    return value


_CHECKS: dict[str, Callable[..., Any]] = {
    "join": _check_join,
    "replace": _check_replace,
    "format": _check_format,
    "indent": _check_indent,
    "sum": _check_sum,
}


def _concat(parts: list[Any]) -> str:
    bounds.check_join("", parts)
    return bounds.made("".join(map(str, parts)))


def _kept(value: Any) -> Any:
    return bounds.counted(value) if isinstance(value, str) else value


def _raise(message: Any) -> None:
    raise TemplateError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    bounds.room(bounds.weight(value, (indent or 0) + sum(map(len, separators or ()))))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Namespace(Namespace):
    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"the name {name!r} begins with an underscore")
        super().__setitem__(name, _kept(value))


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    filters = environment.filters | {"tojson": _to_json}
    environment.filters = {name: _bounded(name, filters[name]) for name in filters if name not in _FILTERS}
    environment.filters |= {
        "_watched": bounds.watched,
        "_counted": bounds.counted,
        "_kept": _kept,
        "_made": bounds.made,
        "_concat": _concat,
        "_comparable": bounds.comparable,
    }
    for name in ("eq", "==", "equalto", "ne", "!=", "lt", "<", "lessthan", "le", "<=", "gt", ">", "greaterthan"):
        environment.tests[name] = _compared(environment.tests[name])
    for name in ("ge", ">=", "in"):
        environment.tests[name] = _compared(environment.tests[name])
    del environment.globals["lipsum"]
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda form: DATE.strftime(form),
        "namespace": _Namespace,
    }
    return environment


def _compared(test: Callable[..., bool]) -> Callable[..., bool]:
    return lambda *values: test(*map(bounds.comparable, values))
