"""A module's own forward with some of its calls going to other modules: its class, source and arguments otherwise.

Which call is which is told by where it stands in the source, so that a forward may branch, run again in a checkpoint,
or be traced. Only calls that one place makes several times are told apart by their order, which is checked.
"""

from __future__ import annotations
import __future__

import ast
import copy
import dis
import functools
import hashlib
import linecache
import types
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

Function = types.FunctionType


class UnplacedError(Exception):
    """Why a call cannot be found in the source of its caller, in words."""


class Place(NamedTuple):
    """A call expression in the method ``attribute`` of the class at ``depth`` of the caller's MRO.

    ``wrapped`` is the number of decorators around the function. ``calls`` are the numbers of call expressions in a
    function: of the call itself, after those by which the method, or what it calls, calls a function that is no method.
    """

    depth: int
    attribute: str
    wrapped: int
    calls: tuple[int, ...] = ()


class Redirection(NamedTuple):
    """What the call at a place becomes: ``self.path(x)``.

    Its result is bound to local ``names`` as well, of each function on the way to it; none may be given.

    ``digest`` tells the source that the place is in.
    """

    place: Place
    digest: str
    path: str
    names: tuple[tuple[str, ...], ...] = ()


# ---- from a running call to its place -----------------------------------------------------------------------


def place_of(module: nn.Module, frame: types.FrameType, is_callee: Callable[[Any], bool]) -> tuple[Place, bool]:
    """The place of the call that a frame is at, within a call of ``module``, and whether another call there may be of
    something else, since a local variable says of what.

    Raises:
        UnplacedError: if no call of a callee, in the source of a method of the module, can be told to be it.
    """
    place, _, call = _located(module, frame, lambda function, call: _operand(call, frame, is_callee) is not None)
    local = {*frame.f_code.co_varnames, *frame.f_code.co_cellvars}
    names = [node.id for node in ast.walk(call.func) if isinstance(node, ast.Name) and node.id in local]
    is_method = not (call.args or call.keywords)
    return place, not is_method and any(frame.f_locals.get(name) is not module for name in names)


def _located(module: nn.Module, frame: types.FrameType | None,
             matches: Callable[[Function, ast.Call], bool]) -> tuple[Place, Function, ast.Call]:
    """Where a frame is at a call that matches, in which function, and the call."""
    cls, code = type(module), frame.f_code
    place, function = next(((place, function) for place, function in _methods(cls)
                            if any(each is code for each in _all(function))
                            and (_this(function, frame) is module or _this(function, frame) is None)), (None, None))
    if place is None and frame.f_back is not None and code is not nn.Module._call_impl.__code__:
        place, caller, call = _located(module, frame.f_back, lambda function, call: getattr(
            _callee(function, call), "__code__", None) is code)
        function = _callee(caller, call)
    if place is None or place.attribute in vars(module):
        raise UnplacedError(f"it is called in {code.co_name}, which is neither a method of {cls.__name__} nor a "
                            "function that one calls")
    running = [(index, call) for index, call in enumerate(_calls(_source(function)[0]))
               if _runs(call, frame) and matches(function, call)]
    if len(running) != 1:
        raise UnplacedError(f"{code.co_name} of {cls.__name__} does not call it by name, as self.relu(x) or F.relu(x), "
                            "or calls several in a line, which Python 3.10 cannot tell apart")
    (index, call), = running
    return place._replace(calls=(*place.calls, index)), function, call


def alike(module: nn.Module, place: Place) -> list[Place]:
    """The places in the same function that name the same callee."""
    function, callee = _chain(type(module), place)[-1]
    return [place._replace(calls=(*place.calls[:-1], index)) for index, call in enumerate(_calls(_source(function)[0]))
            if ast.dump(call.func) == ast.dump(callee.func)]


def readers_at(module: nn.Module, place: Place) -> int | None:
    """How many expressions of a function may read the result of a call; None if its arguments decide on the call."""
    function, call = _chain(type(module), place)[-1]
    source, this = _source(function)[0], function.__code__.co_varnames[0]
    parents = {child: parent for parent in ast.walk(source) for child in ast.iter_child_nodes(parent)}
    node: ast.AST = call
    while not isinstance(node, ast.stmt | ast.Lambda):
        node = parents[node]
        if isinstance(node, ast.IfExp | ast.BoolOp | ast.comprehension | ast.NamedExpr):
            return None
    if not isinstance(node, ast.Assign | ast.Expr) or node.value is not call:
        return 1
    named = node.targets[0] if isinstance(node, ast.Assign) else _operand(call)  # which a statement changes in place
    if not isinstance(named, ast.Name):
        return 1
    above, block = parents[node], node
    while isinstance(above, ast.With) or (isinstance(above, ast.If) and _names(above.test) <= {this}):
        above, block = parents[above], above
    if not isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef | ast.For):
        return None
    return _loads_of(named.id, node, block, above.body)


def _names(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def _loads_of(name: str, assigned: ast.stmt, block: ast.stmt, body: Sequence[ast.stmt]) -> int:
    """How often a local variable is read after an assignment, until the body that it is in assigns another."""
    loads = 0
    for statement in body[body.index(block) if block in body else 0:]:
        loads += sum(isinstance(each, ast.Name) and each.id == name and isinstance(each.ctx, ast.Load)
                     and (each.lineno, each.col_offset) > (assigned.end_lineno, assigned.end_col_offset)
                     for each in ast.walk(statement))
        targets = statement.targets if isinstance(statement, ast.Assign) and statement is not assigned else ()
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            break
    return loads


def _chain(cls: type, place: Place, digest: str = "") -> list[tuple[Function, ast.Call]]:
    """From a method down to a call: functions, and where they call the next one."""
    for method, function in _methods(cls):
        chain: list[tuple[Function, ast.Call]] = []
        for index in place.calls if method[:3] == place[:3] else ():
            function = _callee(*chain[-1]) if chain else function
            calls = _calls(_source(function)[0]) if isinstance(function, Function) else []
            if index < len(calls):
                chain.append((function, calls[index]))
        if len(chain) == len(place.calls) and digest in ("", _digest(chain)):
            return chain
    raise UnplacedError(f"the source of {cls.__name__}.{place.attribute} has changed since replace_relu")


def _digest(chain: list[tuple[Function, ast.Call]]) -> str:
    text = "".join(ast.unparse(_source(function)[0]) for function, _ in chain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _methods(cls: type) -> Iterator[tuple[Place, Function]]:
    """The functions of a class, those that decorators wrap too."""
    for depth, owner in enumerate(cls.__mro__):
        for attribute, value in vars(owner).items() if owner not in (nn.Module, object) else ():
            for wrapped, function in enumerate(_functions(value)):
                yield Place(depth, attribute, wrapped), function


def _this(function: Function, frame: types.FrameType) -> Any:
    """A function's first argument, as far as a frame in it knows."""
    return frame.f_locals.get(next(iter(function.__code__.co_varnames), ""))


def _callee(function: Function, call: ast.Call) -> Any:
    """What a call in a function is of, unless that is local."""
    names = {**function.__globals__, **dict(zip(function.__code__.co_freevars, _contents(function), strict=True))}
    return _value(call.func, names, {})


def _functions(value: Any) -> list[Function]:
    """The function that an attribute is, and those around which it is a decorator, for any arguments."""
    found, waiting = [], [getattr(value, "__func__", getattr(value, "fget", value))]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Function) and value not in found:
            found.append(value)
            waiting.extend(_contents(value) if not value.__code__.co_argcount else ())
    return found


def _contents(function: Function) -> list[Any]:
    """What is in the cells of a closure that are filled."""
    contents = []
    for cell in function.__closure__ or ():
        try:
            contents.append(cell.cell_contents)
        except ValueError:
            contents.append(None)
    return contents


def _all(function: Function | types.CodeType) -> Iterator[types.CodeType]:
    """A function's code and all code within."""
    code = getattr(function, "__code__", function)
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _all(constant)


def _runs(call: ast.Call, frame: types.FrameType) -> bool:
    """Whether a frame may be at a call; Python 3.10 only tells the line."""
    end = column = None
    if hasattr(frame.f_code, "co_positions"):
        _, end, _, column = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    if column is None:
        return call.lineno <= frame.f_lineno <= call.end_lineno
    return (call.end_lineno, call.end_col_offset) == (end, column)


def _operand(call: ast.Call, frame: types.FrameType | None = None,
             is_callee: Callable[[Any], bool] | None = None) -> ast.expr | None:
    """What is called by ``F.relu(x)``, ``self.relu(input=x)`` or ``x.relu()``: x; None if it is no such call."""
    arguments = [*call.args[:1], *(keyword.value for keyword in call.keywords if keyword.arg == "input")]
    if not arguments:
        return call.func.value if isinstance(call.func, ast.Attribute) and call.func.attr in ("relu", "relu_") else None
    if isinstance(arguments[0], ast.Starred):
        return None
    if frame is not None and not is_callee(_value(call.func, frame.f_globals, frame.f_locals)):
        return None
    return arguments[0]


def _value(expression: ast.expr, names: dict[str, Any], local: Mapping[str, Any]) -> Any:
    """The value of a name, or of attributes and items of one; None for any other expression."""
    allowed = (ast.Name, ast.Attribute, ast.Subscript, ast.Constant, ast.UnaryOp, ast.USub, ast.Load)
    if not all(isinstance(node, allowed) for node in ast.walk(expression)):
        return None
    try:
        return eval(compile(ast.Expression(expression), "<callee>", "eval"), names, local)
    except Exception:  # it is the user's
        return None


# ---- from functions to their source -------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _source(function: Function) -> tuple[Any, str]:
    """The syntax of a function, and the class around it, whose name mangles ``__names``."""
    code, name = function.__code__, function.__qualname__
    text = "".join(linecache.getlines(code.co_filename, function.__globals__))
    for node, owner in _functions_in(_tree(text)):
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])
        if first == code.co_firstlineno and getattr(node, "name", "<lambda>") == code.co_name:
            node = copy.deepcopy(node)
            node.decorator_list = []
            if _reaches(node, code) and _same(_code(_surrounded(node, owner, code), code, "<source>"), code):
                return node, owner
    raise UnplacedError(f"the source of {name} cannot be read, or is not what runs")


@functools.lru_cache(maxsize=64)
def _tree(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except SyntaxError:
        return ast.Module([], [])


def _functions_in(tree: ast.AST, owner: str = "") -> Iterator[tuple[Any, str]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield node, owner
        yield from _functions_in(node, node.name if isinstance(node, ast.ClassDef) else "")


def _reaches(node: Any, code: types.CodeType) -> bool:
    """Whether code ends within a node, as that of one lambda of a line does; Python 3.10 does not tell."""
    positions = code.co_positions() if hasattr(code, "co_positions") else ()
    last = max(((end, column) for _, end, _, column in positions if column is not None), default=None)
    return last is None or (node.lineno, node.col_offset) < last <= (node.end_lineno, node.end_col_offset)


def _calls(node: ast.AST) -> list[ast.Call]:
    return sorted((each for each in ast.walk(node) if isinstance(each, ast.Call)),
                  key=lambda call: (call.end_lineno, call.end_col_offset))


def _surrounded(node: Any, owner: str, code: types.CodeType) -> ast.Module:
    """A function within what gives it its free variables and its mangled names."""
    free = ", ".join(name for name in code.co_freevars if name != "__class__")
    tree = ast.parse(f"def surroundings({free}):\n {f'class {owner}' if owner else 'if True'}:\n  pass")
    tree.body[0].body[0].body = [ast.Expr(node) if isinstance(node, ast.Lambda) else node]
    return ast.fix_missing_locations(tree)


def _code(source: ast.Module | str, like: types.CodeType, name: str) -> types.CodeType:
    """The code of the function of the same name in a source."""
    flags = sum(flag for flag in (getattr(__future__, each).compiler_flag for each in __future__.all_feature_names)
                if like.co_flags & flag)
    waiting = [compile(source, name, "exec", flags, dont_inherit=True)]
    while (code := waiting.pop(0)).co_name != like.co_name:
        waiting.extend(each for each in code.co_consts if isinstance(each, types.CodeType))
    return code


def _same(code: types.CodeType, other: types.CodeType) -> bool:
    """Whether two come from the same source."""
    # Not all instructions: how a module's function is called depends on the imports of the file.
    operators = [[(each.opname, each.argrepr) for each in dis.get_instructions(both)
                  if each.opname.startswith(("BINARY", "COMPARE", "INPLACE", "UNARY"))] for both in (code, other)]
    # Nor, of Python 3.10, the names of functions within, which are of the surroundings too.
    constants = [[each for each in both.co_consts if not isinstance(each, types.CodeType)
                  and not (isinstance(each, str) and "<locals>" in each)] for both in (code, other)]
    parts = [list(_all(both))[1:] for both in (code, other)]
    return (operators[0] == operators[1] and constants[0] == constants[1] and code.co_names == other.co_names
            and code.co_varnames == other.co_varnames and code.co_freevars == other.co_freevars
            and len(parts[0]) == len(parts[1]) and all(map(_same, *parts)))


# ---- from functions to those with calls redirected ----------------------------------------------------------


def redirection(module: nn.Module, place: Place, path: str,
                names: tuple[tuple[str, ...], ...] = ()) -> Redirection:
    """The call at a place of a module goes to what it has at ``path``."""
    return Redirection(place, _digest(_chain(type(module), place)), path, names)


class _Redirect(ast.NodeTransformer):
    """Sends calls to what ``this`` has at a path, with the operand or all arguments, and binds names to the result."""

    def __init__(self, this: str, by_call: Mapping[ast.Call, tuple[str, tuple[str, ...], bool]]) -> None:
        self._this, self._by_call = this, by_call

    def visit_Call(self, node: ast.Call) -> ast.expr:
        found = self._by_call.get(node)
        self.generic_visit(node)
        if found is None:
            return node
        path, names, is_helper = found
        parts = (f".{part}" if part.isidentifier() else f"._modules[{part!r}]" for part in path.split("."))
        call = ast.parse(f"{self._this}{''.join(parts)}()", mode="eval").body
        call.args, call.keywords = (node.args, node.keywords) if is_helper else ([_operand(node)], [])
        for name in names:
            call = ast.NamedExpr(ast.Name(name, ast.Store()), call)
        return call


def _redirected(function: Function, level: int, redirections: list[Redirection], helpers: dict[str, Function],
                this: str = "") -> Function:
    """A function with the calls of a level redirected. Functions that it calls on the way become methods, which
    ``helpers`` collects, with ``this`` as another first argument."""
    node, owner = copy.deepcopy(_source(function))
    old, calls = function.__code__, _calls(node)
    by_call: dict[ast.Call, tuple[str, tuple[str, ...], bool]] = {}
    further: dict[int, list[Redirection]] = defaultdict(list)
    for each in redirections:
        index, is_last = each.place.calls[level], len(each.place.calls) == level + 1
        method = f"_redirected_{'_'.join(map(str, (*each.place[:2], *each.place.calls[:level + 1])))}"
        by_call[calls[index]] = (each.path if is_last else method, each.names[level] if each.names else (), not is_last)
        if not is_last:
            further[index].append(each)
    for index, those in further.items():
        called = _callee(function, _calls(_source(function)[0])[index])
        helpers[by_call[calls[index]][0]] = _redirected(called, level + 1, those, helpers, "redirected_self")
    if this:
        arguments = node.args.posonlyargs or node.args.args
        arguments.insert(0, ast.arg(this))
    node = _Redirect(this or old.co_varnames[0], by_call).visit(node)
    text = ast.unparse(ast.fix_missing_locations(_surrounded(node, owner, old)))
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    name = f"<{function.__module__}.{function.__qualname__} with calls redirected, {digest}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)  # for tracebacks and inspect
    code = _code(text, old, name)
    cells = dict(zip(old.co_freevars, function.__closure__ or (), strict=True))
    return _with(function, code, tuple(cells[variable] for variable in code.co_freevars))


def _with(function: Function, code: types.CodeType, closure: tuple[types.CellType, ...]) -> Function:
    new = Function(code, function.__globals__, function.__name__, function.__defaults__, closure)
    new.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(new, function)
    del new.__wrapped__  # which would be taken for its source
    return new


def _rewrapped(value: Any, old: Function, new: Function) -> Any:
    """An attribute of a class with a function in it replaced, which a decorator may wrap."""
    if isinstance(value, (staticmethod, classmethod)):
        return type(value)(_rewrapped(value.__func__, old, new))
    if isinstance(value, property):
        return property(_rewrapped(value.fget, old, new), value.fset, value.fdel, value.__doc__)
    if value is old or not isinstance(value, Function) or old not in _functions(value):
        return new if value is old else value
    cells = [types.CellType(_rewrapped(content, old, new)) if isinstance(content, Function) else cell
             for cell, content in zip(value.__closure__ or (), _contents(value), strict=True)]
    wrapper = _with(value, value.__code__, tuple(cells))
    if hasattr(value, "__wrapped__"):
        wrapper.__wrapped__ = _rewrapped(value.__wrapped__, old, new)
    return wrapper


# ---- modules ------------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """What is different about a module's class: calls, and which :class:`InTurn` below it must have had all turns."""

    redirections: tuple[Redirection, ...] = ()
    in_turn: tuple[str, ...] = ()


def change(module: nn.Module, what: Change) -> None:
    """Give a module a subclass of its class, of the same name, in which some calls go elsewhere."""
    module.__class__ = _changed(type(module), what)


@functools.cache
def _changed(cls: type, what: Change) -> type:
    by_function: dict[Function, list[Redirection]] = defaultdict(list)
    for each in what.redirections:
        by_function[_chain(cls, each.place, each.digest)[0][0]].append(each)
    by_owner: dict[int, dict[str, Any]] = defaultdict(dict)
    helpers: dict[str, Function] = {}
    for old, redirections in by_function.items():
        depth, attribute, *_ = redirections[0].place
        known = vars(cls.__mro__[depth])
        new = _redirected(old, 0, redirections, helpers)
        new = _rewrapped(by_owner[depth].get(attribute, known[attribute]), old, new)
        by_owner[depth] |= {name: new for name, value in known.items() if value is known[attribute]}
    own = by_owner.pop(0, {})
    # What becomes of a base class's methods stands before that class in the order in which super() goes.
    bases = [type(base)(base.__name__, (base,), {"__module__": base.__module__, **by_owner[depth]})
             for depth, base in enumerate(cls.__mro__) if depth in by_owner]
    own |= helpers | {"_changed": (cls, what), "__reduce_ex__": _reduce, "__module__": cls.__module__,
            "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    new = type(cls)(cls.__name__, (cls, *bases), own)
    if what.in_turn:
        new.forward = _counted(new.forward, what.in_turn)
    return new


def _reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """As the user's class would be, and then changed again, since a pickle knows classes by their names only."""
    changed = [cls for cls in type(self).__mro__ if "_changed" in cls.__dict__]
    users = changed[-1].__dict__["_changed"][0]
    make, arguments, *state = users.__reduce_ex__(self, protocol)
    if type(self) is not changed[0]:  # but somebody else's class of this one
        return make, arguments, *state
    changes = tuple(cls.__dict__["_changed"][1] for cls in reversed(changed))
    return _restored, (changes, make, tuple(users if value is type(self) else value for value in arguments)), *state


def _restored(changes: tuple[Change, ...], make: Callable[..., nn.Module], arguments: tuple[Any, ...]) -> nn.Module:
    module = make(*arguments)
    for what in changes:
        change(module, what)
    return module


class InTurn(nn.ModuleList):
    """Modules for the calls that one place makes: the first is called first, and so on.

    The module that has been changed to begin their turns requires afterwards that all had theirs, or none. Without it
    nothing tells whose turn it is, as in a checkpoint of a part of it, which runs again in another order.
    """

    turn: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        turn = self.turn
        if turn is None:
            raise RuntimeError(f"replace_relu: one of {len(self)} calls that a forward made in turn on the example is "
                               "made apart from it, as in a checkpoint or a trace of a part, and which is not known")
        if turn == len(self):
            raise RuntimeError(f"replace_relu: a call that the example made {turn} times is made again; a forward that "
                               "repeats it more often cannot tell which block is meant")
        self.turn = turn + 1
        return self[turn](x)


def _counted(forward: Callable[..., Any], paths: tuple[str, ...]) -> Callable[..., Any]:
    """The forward of a module that begins the turns of those at ``paths``."""

    @functools.wraps(forward)
    def counted(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        in_turn = [self.get_submodule(path) for path in paths]
        for modules in in_turn:
            modules.turn = 0
        result = forward(self, *args, **kwargs)
        for path, modules in zip(paths, in_turn, strict=True):
            turn, modules.turn = modules.turn, None
            if turn not in (0, len(modules)):
                raise RuntimeError(f"replace_relu: {path} was called {turn} times, and on the example {len(modules)} "
                                   "times; a forward that skips some cannot tell which block is meant")
        return result

    return counted
