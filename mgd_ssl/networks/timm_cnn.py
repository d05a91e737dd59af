"""Any CNN of timm by name, `timm.NAME`: how it is built, where its classifier is, where its stages are read."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mgd_ssl.errors import UserError, nearest
from mgd_ssl.networks.activations import maps_before_activations, norm_before
from mgd_ssl.networks.stages import Family, StageTap

TIMM = "timm."  # before the names
EDGE = 64  # pixels of the images on which its maps are looked at
STAGES = {4: 1, 8: 2, 16: 3, 32: 4}  # how many times smaller than the image -> number


def timm_network(name: str, num_classes: int | None = None) -> nn.Module:
    """A freshly initialised network with its classifier on.

    Args:
        name: `timm.NAME`.
        num_classes: of the classifier; None: as many as the network usually has.

    Raises:
        UserError: without timm, for a name it does not know, and for networks whose classifier is not one linear layer.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError(f"{name} needs timm, which is not installed: pip install 'mgd_ssl[timm]'") from error
    short = name.removeprefix(TIMM)
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if not timm.is_model(short.partition(".")[0]):
        raise UserError(f"timm has no network {short!r}{nearest(short, timm.list_models())}: see timm.list_models()")
    network = built_on_cpu(lambda: timm.create_model(short, pretrained=False, **options))
    name_of = classifier_of(network)
    if not isinstance(name_of, str) or not isinstance(network.get_submodule(name_of), nn.Linear):
        raise UserError(f"{name} does not end in one linear classifier: choose another network")
    return network


def built_on_cpu(build: Callable[[], nn.Module]) -> nn.Module:
    """A network whose constructor needs the values of tensors, on the device that is asked for by `torch.device`."""
    wanted = torch.get_default_device()
    with torch.device("cpu"):
        network = build()
    return network.to(wanted)


def classifier_of(network: nn.Module) -> Any:
    """Dotted name of the module that timm calls the classifier."""
    configuration: Any = getattr(network, "pretrained_cfg", {})
    return configuration.get("classifier")


def timm_family(network: nn.Module) -> Family:
    """What is known of a network that `timm_network` built."""
    longest = max((name for name in network.state_dict() if name.endswith(".weight")), key=len)  # ends no other one
    return Family(type(network), classifier_of(network), longest, timm_taps)


def timm_taps(network: nn.Module) -> list[StageTap]:
    """In each of the modules that timm says are stages the last map before an activation that has the stage's size.

    Raises:
        UserError: where there is none.
    """
    try:
        called = maps_before_activations(network, EDGE)
    except Exception as error:  # whatever the network's own code raises: a ViT wants images of its size
        raise UserError(f"{type(network).__name__} does not take images of any size ({error}): choose a CNN") from error
    taps = []
    for place in getattr(network, "feature_info", []):
        stage, within = STAGES.get(place["reduction"]), f"{place['module']}."
        edge = EDGE // place["reduction"]
        fitting = [name for name, map_ in called.items() if name.startswith(within) and map_.shape[2:] == (edge, edge)]
        if stage is not None and fitting:
            name = fitting[-1]
            taps.append(StageTap(name, norm_before(network, name), called[name].shape[1], stage))
    if not taps:
        raise UserError(
            f"{type(network).__name__} has no map before an activation where a stage ends: name modules with --taps or "
            "--teacher-taps, or distil its logits alone (mgd.weight 0)"
        )
    return taps
