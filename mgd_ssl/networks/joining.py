"""Convolutions joined with the ReLUs that follow them, in any network whose data flow can be followed."""

import operator
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from mgd_ssl.networks.convolution_relu import convolution_relu
from mgd_ssl.networks.data_flow import DataFlow, is_common

ADDITIONS = (operator.add, operator.iadd, torch.add)


class Joining:
    """Replaces convolutions and what follows them in the forward pass of a network.

    A convolution is joined with a ReLU that alone reads its output, or alone reads its sum with something else. If the
    latter is a convolution too, its bias goes into that of the first. What is tapped stays: a map is read before its
    ReLU. The network itself stays as it is; the new forward pass has the same weights.

    Args:
        backbone: whose BatchNorms are identities.
        tapped: names of modules whose last input is looked at.

    Raises:
        Exception: of any kind, when torch.fx cannot trace the network.
    """

    def __init__(self, backbone: nn.Module, tapped: Collection[str]) -> None:
        self.flow, self.tapped = DataFlow(backbone), set(tapped)
        self.module = GraphModule(backbone, self.flow.graph)
        self.graph = self.module.graph

    def joined(self) -> GraphModule | None:
        """The new forward pass; None, where nothing can be joined."""
        count = sum(self._join(node) for node in self.flow.nodes if type(self.flow.module(node)) is nn.ReLU)
        if not count or not self.tapped <= {node.target for node in self.graph.nodes if node.op == "call_module"}:
            return None
        self.module.recompile()
        return self.module

    def _join(self, relu: Node) -> bool:
        """Put one operation in the place of a ReLU and of what is before it, if that can be."""
        if relu.target in self.tapped and self.flow.last[relu.target] is relu:
            return False
        before = self._behind(relu.args[0])
        found = self._summands(before)
        if found is None:
            return False
        convolution, added = found
        module = self._convolution(convolution)
        assert module is not None and module.bias is not None
        with self.graph.inserting_before(before):
            weight, bias = (self.graph.get_attr(f"{convolution.target}.{name}") for name in ("weight", "bias"))
        shortcut = None if added is None else self._behind(added)
        if shortcut is not None and (other := self._convolution(shortcut)) is not None:
            assert other.bias is not None
            added = self._without_bias(shortcut, other)
            total = (module.bias.float() + other.bias.float()).to(module.bias.dtype)
            name = f"bias_{len(self.module._parameters)}"
            setattr(self.module, name, nn.Parameter(total, requires_grad=False))
            bias.target = name
        geometry = [*module.stride, *module.padding, *module.dilation]
        with self.graph.inserting_before(before):
            node = self.graph.call_function(convolution_relu, (convolution.args[0], weight, bias, added, geometry))
        relu.replace_all_uses_with(node)
        self._erase(relu)
        return True

    def _behind(self, node: Any) -> Any:
        """What a node gets its value from, through identities that nothing else reads."""
        while type(self._module(node)) is nn.Identity and len(node.users) == 1 and node.target not in self.tapped:
            node = node.args[0]
        return node

    def _module(self, node: Any) -> nn.Module | None:
        return self.flow.module(node) if isinstance(node, Node) else None

    def _convolution(self, node: Any) -> nn.Conv2d | None:
        """The convolution a node calls, if it can be computed elsewhere."""
        module = self._module(node)
        free = is_common(module) and module.bias is not None and len(node.users) == 1
        return module if free and node.target not in self.tapped else None  # type: ignore[return-value]

    def _summands(self, node: Node) -> tuple[Node, Any] | None:
        """The convolution whose output a node yields, or to whose output it adds, with what is added; or None."""
        if self._convolution(node) is not None:
            return node, None
        if node.target not in ADDITIONS or (len(node.args), len(node.kwargs), len(node.users)) != (2, 0, 1):
            return None
        for one, other in (node.args, node.args[::-1]):
            convolution = self._behind(one)
            # it goes to the place of the sum, until when nothing may have changed its input
            if self._convolution(convolution) is not None and len(convolution.args[0].users) == 1:
                return (convolution, other) if isinstance(other, Node) and other is not one else None
        return None

    def _without_bias(self, node: Node, module: nn.Conv2d) -> Node:
        """The same convolution without its bias."""
        with self.graph.inserting_before(node):
            weight = self.graph.get_attr(f"{node.target}.weight")
            where = (module.stride, module.padding, module.dilation, module.groups)
            return self.graph.call_function(F.conv2d, (node.args[0], weight, None, *where))

    def _erase(self, node: Node) -> None:
        """Take away a node that nothing reads any more, and what was there for it alone, back to convolutions."""
        if node.users:
            return
        sources = [] if type(self._module(node)) is nn.Conv2d else node.all_input_nodes
        self.graph.erase_node(node)
        for source in sources:
            self._erase(source)
