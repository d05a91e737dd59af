"""What the compiler makes of a part of a step for an H100, without one; used by `tests.sm90_parts`.

A function is traced on CPU tensors without values, its graphs are moved to a GPU that is made up, and inductor lowers
them to Triton kernels. The bytes are those that inductor's own scheduler says each kernel reads and writes. Triton then
builds kernels for sm_90, and the assembler tells how many registers they take and what they spill. A process of its
own: what it pretends cannot be taken back.
"""

import importlib.util
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch._dynamo.device_interface
import torch._inductor.config
import torch.utils._triton
from torch import Tensor
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import hints
from torch._inductor.utils import BoxedBool
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, warp_size=32, total_memory=80 * 2**30,
    shared_memory_per_block=49152, shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 * 2**20, gcnArchName="", clock_rate=1980000, memory_clock_rate=2619000, memory_bus_width=5120,
)  # fmt: skip
MODE = FakeTensorMode(allow_non_fake_inputs=True)
Graph = tuple[torch.fx.GraphModule, Sequence[Any]]


class Lowered(Exception):
    """Inductor has come as far as it can without a GPU."""


class Kernels(NamedTuple):
    """What a graph became."""

    code: str
    launches: int
    gigabytes: float  # read and written

    @property
    def sources(self) -> dict[str, str]:
        """Of every distinct Triton kernel, by its name."""
        found = re.findall(r"(\w+) = async_compile\.triton\('\w+', '''(.*?)''', device_str='cuda'\)", self.code, re.S)
        return dict(found)

    def written(self, dtype: torch.dtype) -> list[list[int]]:
        """Strides of all tensors of four dimensions and of a type that are made."""
        found = re.findall(rf"empty_strided_cuda\((\(.*?\)), (\(.*?\)), {dtype}\)", self.code)
        return [[int(n) for n in re.findall(r"\d+", strides)] for _, strides in found if strides.count(",") == 3]


@contextmanager
def pretending() -> Iterator[None]:
    """There is an H100, as far as inductor asks."""
    cuda: dict[str, Any] = {
        "is_available": lambda: True, "is_initialized": lambda: False, "_lazy_init": lambda: None,
        "device_count": lambda: 1, "_exchange_device": lambda i: 0, "_maybe_exchange_device": lambda i: 0,
        "current_stream": lambda device=None: SimpleNamespace(cuda_stream=0), "current_device": lambda: 0,
        "get_rng_state": lambda *args: torch.get_rng_state(), "set_rng_state": lambda *args: None,
        "get_device_properties": lambda device=None: H100, "get_device_capability": lambda device=None: (9, 0),
        "is_bf16_supported": lambda *args, **kwargs: True, "synchronize": lambda *args: None,
        "set_device": lambda *args: None,
    }  # fmt: skip
    interface = torch._dynamo.device_interface.get_interface_for_device("cuda")
    asked: dict[str, Any] = {
        "get_device_properties": lambda device=None: H100, "get_compute_capability": lambda device=None: 90,
        "is_available": lambda: True, "current_device": lambda: 0, "is_triton_capable": lambda device=None: True,
        "raise_if_triton_unavailable": lambda device=None: None, "device": lambda *args: nullcontext(),
    }  # fmt: skip
    properties = hints.DeviceProperties("cuda", 0, 132, 90, 9, 65536, 2048, 1024, 32)
    with ExitStack() as stack:
        stack.enter_context(patch.multiple(torch.cuda, **cuda))
        for name, answer in asked.items():
            stack.enter_context(patch.object(interface, name, staticmethod(answer)))
        worker = staticmethod(lambda device=None: H100)
        stack.enter_context(patch.object(interface.Worker, "get_device_properties", worker))
        create = classmethod(lambda kind, device: properties)
        stack.enter_context(patch.object(hints.DeviceProperties, "create", create))
        torch.utils._triton.has_triton.cache_clear()  # it is asked before too, and remembers the answer
        stack.enter_context(patch.object(torch.utils._triton, "triton_hash_with_backend", lambda *args: "h100"))
        yield


def traced(function: Callable[..., Any], inputs: Sequence[Tensor], backward: bool) -> list[Graph]:
    """Forward graph, and backward graph, as torch.compile would hand them to inductor."""
    graphs: list[Graph] = []

    def keep(gm: torch.fx.GraphModule, example_inputs: Any) -> Any:
        graphs.append((gm, example_inputs))

        def run(values: list[Any]) -> Any:
            return gm(*values)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    with MODE:
        compiled = aot_function(
            function, fw_compiler=keep, bw_compiler=keep, partition_fn=min_cut_rematerialization_partition,
            decompositions=select_decomp_table(), keep_inference_input_mutations=True,
        )  # fmt: skip
        if backward:
            compiled(*inputs).backward()
        else:
            with torch.no_grad():
                compiled(*inputs)
    return graphs


def on_the_gpu(graph: torch.fx.GraphModule) -> Graph:
    """The same graph of tensors that lie there, of the same sizes and strides."""

    def there(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        with MODE:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda:0")

    given = []
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            given.append(there(node.meta["val"]))
        elif node.op == "get_attr":
            setattr(graph, node.target, there(getattr(graph, node.target)))
        elif node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda:0")}
    graph.recompile()
    with MODE, torch.no_grad():
        moved = make_fx(graph, tracing_mode="real")(*given)
    for node, value in zip((n for n in moved.graph.nodes if n.op == "placeholder"), given, strict=True):
        node.meta["val"] = value
    # what goes out keeps the strides it was traced with, as torch.compile sees to
    before, after = (next(n for n in each.graph.nodes if n.op == "output") for each in (graph, moved))
    values = [each.meta["val"] if isinstance(each, torch.fx.Node) else None for each in before.args[0]]
    after.meta["user_visible_output_idxs"] = [i for i, value in enumerate(values) if value is not None]
    after.meta["original_output_strides"] = [v.stride() if isinstance(v, Tensor) else None for v in values]
    return moved, given


def lowered(graph: torch.fx.GraphModule, options: dict[str, Any], backward: bool, inference: bool) -> Kernels:
    """Triton's code for a graph, with inductor's options."""
    moved, given = on_the_gpu(graph)
    found: list[Kernels] = []

    def stop(self: GraphLowering) -> None:
        code = str(getattr(self.codegen()[0], "value", ""))
        launches = sum(".run(" in line or "extern_kernels." in line for line in code.splitlines())
        found.append(Kernels(code, launches, self.count_bytes()[0] / 1e9))
        raise Lowered

    usual = {"fx_graph_cache": False, "compile_threads": 1, "triton.autotune_at_compile_time": False}
    with (
        pretending(), MODE, torch._inductor.config.patch({**usual, **options}),
        patch.object(GraphLowering, "compile_to_module", stop),
    ):  # fmt: skip
        try:
            compile_fx_inner(moved, given, cudagraphs=BoxedBool(False), is_backward=backward, is_inference=inference)
        except Exception:
            if not found:
                raise
    return found[0]


def kernels(
    function: Callable[..., Any], inputs: Sequence[Tensor], options: dict[str, Any], train: bool
) -> list[Kernels]:
    """Kernels of the forward pass, and in training of the backward pass."""
    graphs = traced(function, inputs, train)
    return [
        lowered(graph, options, backward=number == 1, inference=not train) for number, (graph, _) in enumerate(graphs)
    ]


def spilled(source: str, name: str, blocks: dict[str, int]) -> dict[str, int]:
    """Registers of a Triton kernel built for sm_90, and bytes of local memory and stack, where spills go.

    Args:
        source: as inductor wrote it.
        name: of its function.
        blocks: sizes by the names of its constants.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    listed = re.search(r"'signature': \{(.*?)\}", source)
    assert listed is not None
    kinds = dict(re.findall(r"'(\w+)': '([^']*)'", listed[1]))
    # the decorators would ask for a driver
    plain = re.sub(r"@triton_heuristics\.\w+\(.*?\n\)\n", "", source, flags=re.S)
    plain = plain.replace("triton_helpers.set_driver_to_gpu()", "").replace("tl.device_assert", "#tl.device_assert")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.py")
        path.write_text(plain)
        spec = importlib.util.spec_from_file_location("kernel", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        names = list(kinds)
        constants = {(names.index(block),): size for block, size in blocks.items() if block in kinds}
        aligned = {
            (i,): [["tt.divisibility", 16]]
            for i, each in enumerate(names)
            if kinds[each].startswith("*") or each in ("xnumel", "ynumel")
        }
        signature = {each: "constexpr" if (i,) in constants else kinds[each] for i, each in enumerate(names)}
        built = triton.compile(
            ASTSource(getattr(module, name), signature, constants, aligned),
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": 8, "num_stages": 1},
        )
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(built.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        told = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True).stdout
    usage = {word: int(value) for word, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", told)}
    return {"registers": usage["REG"], "stack": usage["STACK"], "local": usage["LOCAL"]}
