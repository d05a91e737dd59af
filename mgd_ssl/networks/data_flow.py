"""Which way maps go through a network, as torch.fx follows them; for whatever folds, joins or replaces convolutions."""

from collections import Counter
from inspect import Parameter, signature
from typing import TypeGuard

from torch import nn
from torch.fx import Node, Tracer


class DataFlow:
    """The calls of a forward pass, in their order.

    Args:
        network: whose own code calls modules of torch.

    Raises:
        Exception: of any kind, when torch.fx cannot trace the network.
    """

    def __init__(self, network: nn.Module) -> None:
        arguments = signature(network.forward).parameters.values()
        defaults = {a.name: a.default for a in arguments if a.default is not Parameter.empty}
        self.graph = Tracer().trace(network, concrete_args=defaults)
        self.nodes = list(self.graph.nodes)
        self.modules = dict(network.named_modules())
        self.calls = Counter(module for node in self.nodes if (module := self.module(node)) is not None)
        self.last = {node.target: node for node in self.nodes if node.op == "call_module"}  # calls, by module
        self.read = {
            self.modules.get(str(node.target).rpartition(".")[0]) for node in self.nodes if node.op == "get_attr"
        }

    def module(self, node: Node) -> nn.Module | None:
        """What a node calls; None, where it is no module."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def once(self, module: nn.Module) -> bool:
        """Whether a module is called once, and nothing else reads its weights."""
        return self.calls[module] == 1 and module not in self.read

    def readers(self, node: Node) -> list[Node]:
        """What reads a node's output, through identities."""
        found = []
        for user in node.users:
            found += self.readers(user) if type(self.module(user)) is nn.Identity else [user]
        return found


def is_common(module: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Whether it is a convolution that kernels for special cases compute: zeros around its input, one group."""
    return (
        type(module) is nn.Conv2d
        and (module.groups, module.padding_mode) == (1, "zeros")
        and not isinstance(module.padding, str)
    )
