# SPDX-License-Identifier: Apache-2.0
"""Whatever the code asks of Paddle exists in the Paddle that is installed, and takes these arguments.

Run on each supported version, this holds also the calls that are made on GPUs alone, which no test here makes. The code
is read, not run: names that lead to Paddle are looked up in it, calls are bound to the signatures that are found there,
and objects are followed from where an annotation or the call of a class says what they are.
"""

import ast
import contextlib
import importlib
import inspect
import re
from collections import ChainMap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paddle
import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FILES = [
    path
    for pattern in ("*.py", "hmsa/**/*.py", "tools/*.py", "benchmarks/*.py")
    for path in sorted(ROOT.glob(pattern))
    if path.name != "setup.py"
]
VERSION = Version(paddle.version.full_version)

# Flags that wheels for CPUs lack, and where it stands that those for GPUs have them.
GPU_FLAGS = {
    "FLAGS_cudnn_deterministic": "2.6.2: libphi.so of paddlepaddle-gpu; 3.2.2, 3.3.1: set in amp/debugging.py",
    "FLAGS_cudnn_exhaustive_search": "2.6.2: libphi.so of paddlepaddle-gpu; 3.2.2, 3.3.1: set in amp/auto_cast.py",
    "FLAGS_embedding_deterministic": "2.6.2: libphi.so of paddlepaddle-gpu; 3.x: paddle/common/flags.cc, since 2.5",
}
# Names that wheels for CPUs lack, and where those for GPUs define them, in all supported versions.
GPU_NAMES = {
    "paddle.base.core.set_cublas_switch": "paddle/fluid/pybind/pybind.cc",
    "paddle.base.core.set_cudnn_switch": "paddle/fluid/pybind/pybind.cc",
}
# Functions that fail without a GPU, what they return there, and where that is defined.
GPU_RESULTS = {
    "paddle.device.cuda.get_device_properties": (
        {"name", "major", "minor", "total_memory", "multi_processor_count"},
        "_gpuDeviceProperties in paddle/fluid/pybind/pybind.cc",
    ),
}
# Names that the code does without where they are missing (getattr, hasattr, the version): the first that has them.
SINCE = {
    "paddle.inference.Config.enable_new_ir": "3.0",
    "paddle.pir_utils.DygraphOldIrGuard": "3.0",
    "paddle.pir_utils.DygraphPirGuard": "3.0",
    "paddle.device.cuda.reset_max_memory_allocated": "3.0",
    "paddle.base.core.is_compiled_with_onednn": "3.2",
}
# What must have been found at least: were the reading of the code blind to these, it would find no fault in them.
FOUND = {
    "paddle.DataParallel.no_sync",
    "paddle.amp.GradScaler",
    "paddle.amp.GradScaler.scale",
    "paddle.amp.GradScaler.step",
    "paddle.amp.GradScaler.state_dict",
    "paddle.amp.GradScaler.update",
    "paddle.amp.auto_cast",
    "paddle.device.cuda.get_device_properties.total_memory",
    "paddle.device.cuda.max_memory_allocated",
    "paddle.device.cuda.reset_max_memory_allocated",
    "paddle.distributed.all_reduce",
    "paddle.distributed.fleet.utils.hybrid_parallel_util.fused_allreduce_gradients",
    "paddle.incubate.autotune.set_config",
    "paddle.inference.Config.enable_use_gpu",
    "paddle.inference.Config.enable_new_executor",
    "paddle.nn.SyncBatchNorm.convert_sync_batchnorm",
    "paddle.nn.functional.interpolate",
    "paddle.set_flags",
}


@dataclass(frozen=True)
class Thing:
    """What an expression stands for.

    Attributes:
        name: its dotted name, from `paddle` on.
        value: a module, class, function, ... of Paddle.
        instance: whether it is an object of the class `value` instead.
        bound: whether it is a method of an object, which is its first argument.
        attributes: those of an object whose class is not there.
    """

    name: str
    value: Any = None
    instance: bool = False
    bound: bool = False
    attributes: frozenset = frozenset()


class Reader(ast.NodeVisitor):
    """Reads a module. `found` are the names that lead to Paddle, `faults` what is wrong with them.

    Visiting an expression gives a Thing, or None for what is not Paddle's or not known.
    """

    def __init__(self, source, path):
        self.path = path
        self.found, self.faults = set(), []
        self._names = ChainMap()  # name -> Thing or None, of all scopes, the innermost first
        self._classes = []  # scopes of classes, the innermost last: they hold `self.name`
        self._keys = {}  # name -> keys of the dict that it stands for, which may be handed on as arguments
        self._called = set()  # attributes that are methods
        self.visit(ast.parse(source))

    def visit_Import(self, node):
        for alias in node.names:
            if alias.name.split(".")[0] == "paddle":
                thing = self._module(alias.name, node)
                self._names[alias.asname or "paddle"] = thing if alias.asname else Thing("paddle", paddle)

    def visit_ImportFrom(self, node):
        if node.level == 0 and (node.module or "").split(".")[0] == "paddle":
            home = self._module(node.module, node)
            for alias in node.names:
                self._names[alias.asname or alias.name] = home and self._attribute(home, alias.name, node)

    def visit_FunctionDef(self, node):
        self._names[node.name] = None
        arguments = node.args
        for part in [*node.decorator_list, *arguments.defaults, *arguments.kw_defaults, node.returns]:
            if part is not None:
                self.visit(part)
        self._names = self._names.new_child()
        for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
            self._names[argument.arg] = self._annotated(argument.annotation)
        for argument in filter(None, [arguments.vararg, arguments.kwarg]):
            self._annotated(argument.annotation)
            self._names[argument.arg] = None
        for statement in node.body:
            self.visit(statement)
        self._names = self._names.parents

    def visit_Lambda(self, node):
        self._names = self._names.new_child({argument.arg: None for argument in node.args.args})
        self.visit(node.body)
        self._names = self._names.parents

    def visit_ClassDef(self, node):
        self._names[node.name] = None
        for part in [*node.decorator_list, *node.bases]:
            self.visit(part)
        self._names = self._names.new_child()
        self._classes.append(self._names.maps[0])
        for statement in sorted(node.body, key=lambda part: getattr(part, "name", "") != "__init__"):
            self.visit(statement)
        self._classes.pop()
        self._names = self._names.parents

    def visit_Assign(self, node):
        thing = self.visit(node.value)
        for target in node.targets:
            self._bind(target, thing)
            if isinstance(node.value, ast.Dict):
                self._keys[ast.unparse(target)] = [
                    key.value for key in node.value.keys if isinstance(key, ast.Constant)
                ]

    def visit_AnnAssign(self, node):
        annotated = self._annotated(node.annotation)
        thing = self.visit(node.value) if node.value else None
        self._bind(node.target, thing or annotated)

    def visit_NamedExpr(self, node):
        thing = self.visit(node.value)
        self._bind(node.target, thing)
        return thing

    def visit_For(self, node):
        self.visit(node.iter)
        self._bind(node.target, None)
        for statement in [*node.body, *node.orelse]:
            self.visit(statement)

    def visit_withitem(self, node):
        self.visit(node.context_expr)
        if node.optional_vars:
            self._bind(node.optional_vars, None)

    def visit_comprehension(self, node):
        self.visit(node.iter)
        self._bind(node.target, None)
        for condition in node.ifs:
            self.visit(condition)

    def _visit_comprehension(self, node):
        self._names = self._names.new_child()
        for part in [*node.generators, *(getattr(node, field, None) for field in ("elt", "key", "value"))]:
            if part is not None:
                self.visit(part)
        self._names = self._names.parents

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _visit_comprehension

    def visit_Name(self, node):
        return self._names.get(node.id)

    def visit_Attribute(self, node):
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            return self._names.get(f"self.{node.attr}")
        thing = self.visit(node.value)
        return thing and self._attribute(thing, node.attr, node)

    def visit_IfExp(self, node):
        self.visit(node.test)
        one, other = self.visit(node.body), self.visit(node.orelse)
        return one or other

    def visit_Call(self, node):
        self._called.add(node.func)
        function = self.visit(node.func)
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            self.visit(argument)
        if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            return self._optional(*node.args)
        if function is None or function.instance:
            return None
        self._check_arguments(function, node)
        if function.name in GPU_RESULTS:
            return Thing(function.name, attributes=frozenset(GPU_RESULTS[function.name][0]))
        return Thing(function.name, function.value, instance=True) if inspect.isclass(function.value) else None

    def _bind(self, target, thing):
        if isinstance(target, (ast.Tuple, ast.List)):
            for part in target.elts:
                self._bind(part, None)
        elif isinstance(target, ast.Name):
            self._names[target.id] = thing
        elif isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self" and self._classes:
            self._classes[-1][f"self.{target.attr}"] = thing
        else:
            self.visit(target)

    def _annotated(self, annotation):
        thing = annotation and self.visit(annotation)
        if thing and inspect.isclass(thing.value) and not thing.instance:
            return Thing(thing.name, thing.value, instance=True)
        return None

    def _module(self, name, node):
        thing = Thing("paddle", paddle)
        for part in name.split(".")[1:]:
            thing = thing and self._attribute(thing, part, node)
        return thing

    def _attribute(self, thing, name, node):
        whole = f"{thing.name}.{name}"
        self.found.add(whole)
        if thing.attributes:
            return None if name in thing.attributes else self._fault(node, f"there is no {whole}")
        if inspect.ismodule(thing.value) and not hasattr(thing.value, name):
            with contextlib.suppress(ImportError):
                importlib.import_module(f"{thing.value.__name__}.{name}")
        if not hasattr(thing.value, name):
            # What objects have beside the methods of their class is not known, nor what layers are made of.
            unknown = thing.instance and (node not in self._called or issubclass(thing.value, paddle.nn.Layer))
            later = whole in SINCE and Version(SINCE[whole]) > VERSION
            return None if unknown or later or whole in GPU_NAMES else self._fault(node, f"there is no {whole}")
        value = getattr(thing.value, name)
        if not thing.instance:
            return Thing(whole, value)
        free = isinstance(inspect.getattr_static(thing.value, name), (staticmethod, classmethod))
        return Thing(whole, value, bound=not free) if callable(value) else None

    def _optional(self, home, name, *_):
        """A name that the code asks for, as it may be missing."""
        thing = self.visit(home)
        if thing is None or thing.instance or not isinstance(name, ast.Constant):
            return
        whole = f"{thing.name}.{name.value}"
        self.found.add(whole)
        if whole not in SINCE:
            self._fault(name, f"{whole} may be missing: write into SINCE which version has it")
        elif hasattr(thing.value, name.value) != (Version(SINCE[whole]) <= VERSION):
            self._fault(name, f"{whole} is expected from {SINCE[whole]} on")

    def _check_arguments(self, function, node):
        positional = [argument for argument in node.args if not isinstance(argument, ast.Starred)]
        names, complete = [], len(positional) == len(node.args)
        for keyword in node.keywords:
            keys = [keyword.arg] if keyword.arg else self._keys.get(ast.unparse(keyword.value))
            complete = complete and keys is not None
            names += keys or []
        known = signatures(function)
        if known and not any(takes(signature, len(positional), names, complete) for signature in known):
            expected = " or ".join(map(str, known))
            self._fault(node, f"{function.name} takes {expected}, not {ast.unparse(node)}")

    def _fault(self, node, text):
        self.faults.append(f"{self.path}:{node.lineno}: {text}")


def signatures(function):
    """Those of a function or class, of a method without the object; none where nothing says them."""
    try:
        found = [inspect.signature(function.value)]
    except ValueError:  # of pybind: they stand in the docstring
        is_class = inspect.isclass(function.value)
        document = (function.value.__init__ if is_class else function.value).__doc__ or ""
        found = [parsed(line) for line in re.findall(r"^(?:\d+\. )?\w+\((.*)\) -> ", document, re.MULTILINE)]
        return [without_first(signature) if is_class or function.bound else signature for signature in found]
    return [without_first(signature) if function.bound else signature for signature in found]


def parsed(arguments):
    """The signature that pybind writes as `name: type, name: type = default`."""
    depth, parts = 0, [""]
    for character in arguments:
        depth += (character in "([{<") - (character in ")]}>")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    parameters = []
    for part in filter(str.strip, parts):
        stars, name, default = re.fullmatch(r"\s*(\**)(\w+)[^=]*(=.*)?", part).groups()
        kind = {"": "POSITIONAL_OR_KEYWORD", "*": "VAR_POSITIONAL", "**": "VAR_KEYWORD"}[stars]
        empty = inspect.Parameter.empty
        parameters.append(inspect.Parameter(name, getattr(inspect.Parameter, kind), default=default or empty))
    return inspect.Signature(parameters)


def without_first(signature):
    first, *others = signature.parameters.values()
    return signature if first.kind is first.VAR_POSITIONAL else signature.replace(parameters=others)


def takes(signature, positional, names, complete):
    """Whether so many arguments and those names can be given; they are all there are if `complete`."""
    bind = signature.bind if complete else signature.bind_partial
    try:
        bind(*[None] * positional, **dict.fromkeys(names))
    except TypeError:
        return False
    return True


@pytest.fixture(scope="module")
def readers():
    return [Reader(path.read_text(encoding="utf-8"), path.relative_to(ROOT)) for path in FILES]


def test_every_name_exists_and_takes_these_arguments(readers):
    faults = [fault for reader in readers for fault in reader.faults]
    assert not faults, "\n".join(faults)


def test_the_calls_on_gpus_are_among_those_that_were_read(readers):
    assert set() == FOUND - {name for reader in readers for name in reader.found}


def test_every_flag_exists():
    named = set()
    for path in FILES:
        named |= set(re.findall(r"['\"](FLAGS_\w+)['\"]", path.read_text(encoding="utf-8")))
    assert "FLAGS_cudnn_exhaustive_search" in named
    assert [name for name in sorted(named - GPU_FLAGS.keys()) if name not in paddle.base.core.globals()] == []


def test_the_keys_of_the_automatic_layout_exist():
    """`set_config` passes over what it does not know."""
    source = inspect.getsource(paddle.incubate.autotune.set_config)
    assert 'config_dict["layout"]' in source
    assert "layout_config['enable']" in source


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import paddle.device\npaddle.device.cuda.no_such_call()", "there is no paddle.device.cuda.no_such_call"),
        ("from paddle.nn import functional as F\nF.no_such_call", "there is no paddle.nn.functional.no_such_call"),
        ("from paddle import no_such_name", "there is no paddle.no_such_name"),
        ("import paddle\ndef f(x: paddle.NoSuchType): pass", "there is no paddle.NoSuchType"),
        ("import paddle\npaddle.zeros([1], dtyp='int64')", "paddle.zeros takes"),
        ("import paddle\npaddle.seed()", "paddle.seed takes"),
        ("import paddle\npaddle.seed(1, 2)", "paddle.seed takes"),
        ("import paddle\npaddle.amp.GradScaler(scale=1)", "paddle.amp.GradScaler takes"),
        ("import paddle\nrate = {'learning': 1}\npaddle.optimizer.SGD(**rate)", "paddle.optimizer.SGD takes"),
        (
            "import paddle\nscaler = paddle.amp.GradScaler()\nscaler.unscale()",
            "there is no paddle.amp.GradScaler.unscale",
        ),
        (
            "import paddle\nclass A:\n  def f(self):\n    self.s.step()\n"
            "  def __init__(self):\n    self.s = paddle.amp.GradScaler()",
            "paddle.amp.GradScaler.step takes",
        ),
        (
            "import paddle\ndef f(c: paddle.inference.Config): c.enable_gpu()",
            "there is no paddle.inference.Config.enable_gpu",
        ),
        (
            "import paddle\npaddle.inference.Config('a', 'b').enable_use_gpu()",
            "paddle.inference.Config.enable_use_gpu takes",
        ),
        ("import paddle\npaddle.inference.Config(1, 2, 3)", "paddle.inference.Config takes"),
        ("import paddle\nx = paddle.device.cuda.get_device_properties().memory", "there is no paddle.device.cuda"),
        ("import paddle\ngetattr(paddle.device.cuda, 'no_such_call', None)", "may be missing: write into SINCE"),
    ],
)
def test_faults_are_found(source, fault):
    (found,) = Reader(source, "module.py").faults
    assert fault in found
