"""Kernels in Triton's Gluon, run on the CPU from their Python source, because Gluon has no interpreter.

Groups of warps are threads, of which one runs at a time. Which one is next, and when a copy ends, is drawn at random.
What a GPU would do silently raises here: ``Deadlock``, where all groups wait, and ``Race``, where shared memory is
written while the tensor cores read it, results are taken before they are there, or something is stored twice. Shared
memory is NaN until something was copied to it, and from the beginning of a copy to its end. Layouts mean nothing here.
"""

import threading
from collections.abc import Callable
from random import Random
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
from triton.experimental.gluon import language
from triton.runtime.jit import JITFunction


class Deadlock(Exception):
    pass


class Race(Exception):
    pass


class Stopped(Exception):
    """Another group has failed."""


class Kernel:
    """A function of ``gluon.jit`` in a module, to be launched as that is."""

    def __init__(self, module: ModuleType, name: str, seed: int = 0) -> None:
        self.names, self.name, self.random = dict(vars(module)), name, Random(seed)
        self.constants = [each.is_constexpr for each in self.names[name].params]

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*given: Any, num_warps: int) -> None:
            arguments = [x if constant else scalar(x) for x, constant in zip(given, self.constants, strict=True)]
            arguments = [Pointer(x) if isinstance(x, torch.Tensor) and x.dim() else x for x in arguments]
            arguments = [Descriptor(x) if hasattr(x, "block_shape") else x for x in arguments]
            for number in range(grid[0]):
                Program(self.random, number).functions(self.names)[self.name](*arguments)

        return launch


def scalar(x: Any) -> Any:
    return torch.tensor(x, dtype=torch.int32) if isinstance(x, int) else x


class Descriptor:
    """A tensor in global memory as the copy engine sees it; past its end there are zeros."""

    def __init__(self, given: Any) -> None:
        self.tensor, self.dtype, self.layout = given.base.detach(), given.base.dtype, given.layout
        nbytes = torch.Size(given.block_shape).numel() * self.dtype.itemsize
        self.block_type = SimpleNamespace(shape=list(given.block_shape), nbytes=nbytes)

    def read(self, place: list[Any]) -> torch.Tensor:
        found = torch.zeros(self.block_type.shape, dtype=self.dtype)
        begin = [int(x) for x in place]
        assert min(begin) >= 0
        inside = self.tensor[tuple(slice(x, x + size) for x, size in zip(begin, found.shape, strict=True))]
        found[tuple(slice(size) for size in inside.shape)] = inside
        return found


class Pointer:
    """Places in a tensor in global memory."""

    def __init__(self, tensor: torch.Tensor, places: Any = 0, stored: torch.Tensor | None = None) -> None:
        self.tensor, self.places, self.dtype = tensor, places, SimpleNamespace(element_ty=tensor.dtype)
        self.stored = torch.zeros(tensor.numel(), dtype=torch.bool) if stored is None else stored

    def __add__(self, places: Any) -> "Pointer":
        return Pointer(self.tensor, self.places + places, self.stored)

    def load(self) -> torch.Tensor:
        return self.tensor.detach().view(-1)[int(self.places)]

    def store(self, value: torch.Tensor, mask: torch.Tensor) -> None:
        value, mask, places = torch.broadcast_tensors(value, mask, self.places)
        places = places[mask]
        if self.stored[places].any():
            raise Race("stored twice")
        self.stored[places] = True
        self.tensor.view(-1)[places] = value[mask]


class Memory:
    """Shared memory, and how often each part of it was written to."""

    def __init__(self, data: torch.Tensor, writes: torch.Tensor) -> None:
        self.data, self.writes, self.dtype, self.shape = data, writes, data.dtype, data.shape

    def index(self, i: Any) -> "Memory":
        return Memory(self.data[int(i)], self.writes[int(i)])

    def reshape(self, shape: list[int]) -> "Memory":
        return Memory(self.data.view(shape), self.writes)

    def permute(self, order: tuple[int, ...]) -> "Memory":
        return Memory(self.data.permute(order), self.writes)

    def write(self, value: Any) -> None:
        self.data[:] = value
        self.writes += 1


class Barrier:
    """An mbarrier: a phase ends when all have arrived and all bytes that were announced have come."""

    def __init__(self) -> None:
        self.phase = self.bytes = self.missing = self.count = 0

    def init(self, count: int) -> None:
        self.count = self.missing = count

    def change(self, arrivals: int, size: int) -> None:
        self.missing, self.bytes = self.missing - arrivals, self.bytes + size
        if self.missing < 0:
            raise Race("more arrive at a barrier than it was made for")
        if self.missing == self.bytes == 0:
            self.phase, self.missing = 1 - self.phase, self.count


class Barriers(list[Barrier]):
    def index(self, i: Any) -> Barrier:  # type: ignore[override]
        return self[int(i)]


class Product:
    """What the tensor cores are computing; it is no tensor before it was waited for."""

    def __init__(self, value: torch.Tensor, operands: list[Memory]) -> None:
        self.value, self.read, self.done = value, [(x.writes, int(x.writes)) for x in operands], False

    def finish(self) -> None:
        if any(int(writes) != before for writes, before in self.read):
            raise Race("shared memory is written while it is multiplied")
        self.done = True


class Program:
    """One program of a grid."""

    def __init__(self, random: Random, number: int) -> None:
        self.random, self.number = random, number
        self.copies: list[Callable[[], None]] = []  # under way
        self.products: dict[int, list[Product]] = {}  # under way, by group
        self.waiting: dict[int, Callable[[], bool]] = {}  # until when, by group
        self.gates: list[threading.Semaphore] = []
        self.own = threading.local()
        self.failure: BaseException | None = None

    def functions(self, module: dict[str, Any]) -> dict[str, Any]:
        """Return the names of a module, its kernels bound to this program."""
        names: dict[str, Any] = {}
        for name, value in module.items():
            bound = FunctionType(value.fn.__code__, names) if isinstance(value, JITFunction) else value
            names[name] = bound.value if isinstance(bound, language.constexpr) else bound
        names["gl"] = SimpleNamespace(
            program_id=lambda axis: scalar(self.number),
            load=Pointer.load,
            store=Pointer.store,
            static_range=range,
            arange=lambda start, end, layout: torch.arange(start, end, dtype=torch.int32),
            full=lambda shape, value, dtype, layout: torch.full(shape, value, dtype=dtype),
            convert_layout=lambda x, layout, assert_trivial: x,
            maximum=lambda a, b: torch.maximum(a, torch.as_tensor(b, dtype=a.dtype)),
            minimum=lambda a, b: torch.minimum(a, torch.as_tensor(b, dtype=a.dtype)),
            max=torch.amax, sum=torch.sum, exp2=torch.exp2, log2=torch.log2, where=torch.where,
            float32=torch.float32, int64=torch.int64,
            NVMMADistributedLayout=nothing, SliceLayout=nothing, DotOperandLayout=nothing,
            allocate_shared_memory=allocate,
            warp_specialize=self.specialize,
        )  # fmt: skip
        names["mbarrier"] = SimpleNamespace(
            MBarrierLayout=nothing, init=Barrier.init, expect=self.expect, arrive=self.arrive, wait=self.wait
        )
        names["tma"] = SimpleNamespace(async_copy_global_to_shared=self.copy)
        names["warpgroup_mma"], names["warpgroup_mma_wait"] = self.multiply, self.finish
        return names

    def specialize(self, groups: list[tuple[Any, tuple[Any, ...]]], warps: list[int], registers: list[int]) -> None:
        assert len(groups) == len(warps) + 1 == len(registers) + 1
        threads = [threading.Thread(target=self.group, args=(i, *each)) for i, each in enumerate(groups)]
        self.gates = [threading.Semaphore(0) for _ in groups]
        self.waiting = dict.fromkeys(range(len(groups)), lambda: True)
        for thread in threads:
            thread.start()
        self.next()
        for thread in threads:
            thread.join()
        if self.failure:
            raise self.failure

    def group(self, i: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.own.group = i
        try:
            self.enter()
            function(*arguments)
            if self.products.get(i):
                raise Race("a group ends while the tensor cores compute for it")
            if self.waiting:
                self.next()
        except Stopped:
            pass
        except BaseException as error:
            self.stop(error)

    def enter(self) -> None:
        self.gates[self.own.group].acquire()
        if self.failure:
            raise Stopped

    def stop(self, failure: BaseException) -> None:
        self.failure = failure
        for gate in self.gates:
            gate.release()

    def turn(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Let other groups go on, and copies end, at least until this one is ready to."""
        self.waiting[self.own.group] = ready
        self.next()
        self.enter()

    def next(self) -> None:
        while True:
            able = [i for i, ready in self.waiting.items() if ready()]
            if not able and not self.copies:
                return self.stop(Deadlock("all groups wait"))
            chosen = self.random.randrange(len(able) + len(self.copies))
            if chosen < len(able):
                del self.waiting[able[chosen]]
                return self.gates[able[chosen]].release()
            self.copies.pop(chosen - len(able))()

    def expect(self, barrier: Barrier, size: int) -> None:
        barrier.change(1, size)

    def arrive(self, barrier: Barrier, count: int) -> None:
        barrier.change(count, 0)
        self.turn()

    def wait(self, barrier: Barrier, phase: Any) -> None:
        before = int(phase)
        self.turn(lambda: barrier.phase != before)

    def copy(self, source: Descriptor, place: list[Any], barrier: Barrier, target: Memory) -> None:
        found = source.read(place)
        assert found.shape == target.shape and found.dtype == target.dtype

        def end() -> None:
            target.write(found)
            barrier.change(0, -source.block_type.nbytes)

        target.write(float("nan"))
        self.copies.append(end)
        self.turn()

    def multiply(self, a: Any, b: Memory, out: torch.Tensor, use_acc: bool = True, is_async: bool = False) -> Product:
        assert is_async
        operands = [x for x in (a, b) if isinstance(x, Memory)]
        left, right = ((x.data if isinstance(x, Memory) else x).float() for x in (a, b))
        product = Product(left @ right + out if use_acc else left @ right, operands)
        self.products.setdefault(self.own.group, []).append(product)
        self.turn()
        return product

    def finish(self, outstanding: int, deps: list[Product]) -> Any:
        self.turn()
        under_way = self.products[self.own.group]
        while len(under_way) > outstanding:
            under_way.pop(0).finish()
        (product,) = deps
        if not product.done:
            raise Race("a product is taken before it is there")
        return product.value


def allocate(dtype: torch.dtype, shape: list[int], layout: None) -> Any:
    if dtype == torch.int64:
        return Barriers(Barrier() for _ in range(shape[0]))
    return Memory(torch.full(shape, float("nan"), dtype=dtype), torch.zeros(shape[0], dtype=torch.int64))


def nothing(*_: Any, **__: Any) -> None:
    return None
