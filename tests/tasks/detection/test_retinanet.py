"""RetinaNet's parts against naive loops, and against torchvision where it does the same."""

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d, box_iou, nms

from mgd_ssl.networks.backbones import build_backbone, set_head, stage_taps
from mgd_ssl.tasks.detection.anchors import ExactAnchors
from mgd_ssl.tasks.detection.detector import Trunk
from mgd_ssl.tasks.detection.norms import group_norm, set_norms
from mgd_ssl.tasks.detection.retinanet import RetinaNetDetector
from mgd_ssl.tasks.detection.weights import freeze, stem_stride

STRIDES = (8, 16, 32, 64, 128)


def detector(arch: str = "thin_resnet10", spread: float = 0.08, normaliser: str = "ema") -> RetinaNetDetector:
    torch.manual_seed(0)
    body = build_backbone(arch)
    set_head(body, nn.Identity())
    channels = [tap.channels for tap in stage_taps(body)]
    new = RetinaNetDetector(Trunk(body, channels, stem_stride(body)), 3, 16, normaliser)
    for parameter in new.network.head.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=spread)  # so that something is found
    return new.eval()


def naive_anchors(grids: list[tuple[int, int]]) -> list[list[float]]:
    """Position by position, ratio by ratio, size by size."""
    found = []
    for stride, (rows, columns) in zip(STRIDES, grids, strict=True):
        for y, x, ratio, third in itertools.product(range(rows), range(columns), (0.5, 1, 2), range(3)):
            edge = 4 * stride * 2 ** (third / 3)
            w, h = math.sqrt(edge * edge / ratio), math.sqrt(edge * edge * ratio)
            cx, cy = x * stride, y * stride
            found.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    return found


def test_anchors() -> None:
    grids = [(10, 13), (5, 7), (3, 4), (2, 2), (1, 1)]  # of 96 x 128 pixels and not quite
    maps = [torch.zeros(2, 8, *grid) for grid in grids]
    images = ImageList(torch.zeros(2, 3, 80, 104), [(80, 104)] * 2)
    anchors = ExactAnchors.of_retinanet(STRIDES)(images, maps)
    assert len(anchors) == 2
    torch.testing.assert_close(anchors[0], torch.tensor(naive_anchors(grids)), rtol=1e-6, atol=1e-4)
    sizes = tuple((4 * s, int(4 * s * 2 ** (1 / 3)), int(4 * s * 2 ** (2 / 3))) for s in STRIDES)
    images = ImageList(torch.zeros(2, 3, 128, 128), [(128, 128)] * 2)
    maps = [torch.zeros(2, 8, 128 // s, 128 // s) for s in STRIDES]
    theirs = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)(images, maps)[0]
    ours = ExactAnchors.of_retinanet(STRIDES)(images, maps)[0]
    assert ours.shape == theirs.shape and float((ours - theirs).abs().max()) < 2  # in the same order, but for rounding


def random_targets(seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(4, 2, generator=generator) * 25
    edges = 8 + torch.rand(4, 2, generator=generator) * 30
    boxes = torch.cat([corners, corners + edges], dim=1)
    return [
        {"boxes": boxes[:3], "labels": torch.tensor([0, 2, 1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
        {"boxes": boxes[3:], "labels": torch.tensor([2])},
    ]


def naive_losses(
    heads: dict[str, Tensor], anchors: Tensor, targets: list[dict[str, Tensor]]
) -> tuple[list[float], list[float], list[int]]:
    """Sums of focal loss (alpha 0.25, gamma 2) and L1 of every image, and its positives, anchor by anchor."""
    focal, l1, positives = [], [], []
    for logits, offsets, target in zip(heads["cls_logits"], heads["bbox_regression"], targets, strict=True):
        boxes = target["boxes"]
        iou = box_iou(boxes, anchors) if len(boxes) else torch.zeros(1, len(anchors))
        best_of_box = iou.amax(dim=1)
        sums, count = [0.0, 0.0], 0
        for a in range(len(anchors)):
            value, which = iou[:, a].max(dim=0)
            low_quality = len(boxes) > 0 and bool((iou[:, a] == best_of_box).any())
            positive = bool(value >= 0.5) or low_quality
            if not positive and value >= 0.4:
                continue
            for k in range(logits.shape[1]):
                p = float(torch.sigmoid(logits[a, k].double()))
                held = positive and int(target["labels"][which]) == k
                sums[0] += -0.25 * (1 - p) ** 2 * math.log(p) if held else -0.75 * p**2 * math.log(1 - p)
            if positive:
                count += 1
                x1, y1, x2, y2 = boxes[which].tolist()
                a1, b1, a2, b2 = anchors[a].tolist()
                w, h = a2 - a1, b2 - b1
                wanted = [
                    ((x1 + x2) / 2 - (a1 + a2) / 2) / w, ((y1 + y2) / 2 - (b1 + b2) / 2) / h,
                    math.log((x2 - x1) / w), math.log((y2 - y1) / h),
                ]  # fmt: skip
                sums[1] += sum(abs(x - y) for x, y in zip(offsets[a].tolist(), wanted, strict=True))
        focal.append(sums[0])
        l1.append(sums[1])
        positives.append(count)
    return focal, l1, positives


@torch.no_grad()
@pytest.mark.parametrize("normaliser", ["ema", "image"])
def test_losses_against_a_loop(normaliser: str) -> None:
    network = detector(normaliser=normaliser)
    images, targets = torch.randn(3, 3, 64, 64), random_targets(0)
    sizes = torch.full((3, 2), 64)
    heads, anchors, _ = network.outputs(images)
    focal, l1, positives = naive_losses(heads, anchors[0], targets)
    assert positives[1] == 0 < min(positives[0], positives[2])
    for module in network.network.modules():
        module.training = module is network  # the norms stay
    network.training = True
    found = network.losses(images, sizes, targets)
    if normaliser == "ema":
        average = 0.9 * 50 + 0.1 * sum(positives) / 3
        expected = {"classes": sum(focal) / average / 3, "boxes": sum(l1) / average / 3}
        assert float(network.positives) == pytest.approx(average)
        network.losses(images, sizes, targets)
        assert float(network.positives) == pytest.approx(0.9 * average + 0.1 * sum(positives) / 3)
    else:
        expected = {
            name: sum(each / max(1, count) for each, count in zip(sums, positives, strict=True)) / 3
            for name, sums in (("classes", focal), ("boxes", l1))
        }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_detections_against_a_loop() -> None:
    network = detector(spread=0.2)
    images, sizes = torch.randn(2, 3, 64, 64), torch.tensor([[60, 64], [64, 50]])
    found = network.detections(images, sizes)
    heads, anchors, positions = network.outputs(images)
    assert len(anchors[0]) == 9 * sum(positions)
    for i, one in enumerate(found):
        boxes, scores, labels = [], [], []
        for a in range(len(anchors[0])):
            for k in range(3):
                score = float(torch.sigmoid(heads["cls_logits"][i, a, k]))
                if score <= 0.05:
                    continue
                a1, b1, a2, b2 = anchors[0][a].tolist()
                w, h = a2 - a1, b2 - b1
                dx, dy, dw, dh = heads["bbox_regression"][i, a].tolist()
                cx, cy = (a1 + a2) / 2 + dx * w, (b1 + b2) / 2 + dy * h
                w, h = (math.exp(min(d, math.log(1000 / 16))) * edge for d, edge in ((dw, w), (dh, h)))
                height, width = sizes[i].tolist()
                corners = [
                    min(max(cx - w / 2, 0), width), min(max(cy - h / 2, 0), height),
                    min(max(cx + w / 2, 0), width), min(max(cy + h / 2, 0), height),
                ]  # fmt: skip
                boxes.append(corners)
                scores.append(score)
                labels.append(k)
        kept = []
        for k in range(3):
            of_class = [j for j in range(len(labels)) if labels[j] == k]
            keep = nms(torch.tensor([boxes[j] for j in of_class]), torch.tensor([scores[j] for j in of_class]), 0.5)
            kept += [(scores[of_class[j]], k) for j in keep.tolist()]
        kept.sort(reverse=True)
        assert len(one["scores"]) == min(100, len(kept)) > 10
        expected = torch.tensor([score for score, _ in kept[:100]])
        torch.testing.assert_close(one["scores"], expected, rtol=1e-4, atol=1e-5)


def test_p6_is_made_of_the_last_stage_even_where_p5_has_as_many_channels() -> None:
    body = build_backbone("thin_resnet10")  # 128 channels
    set_head(body, nn.Identity())
    network = RetinaNetDetector(Trunk(body, [16, 32, 64, 128], 2), 2, 128)
    extra = network.network.backbone.fpn.extra_blocks
    seen: list[Tensor] = []
    extra.p6.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.randn(1, 3, 64, 64)
    network.network.backbone(images)
    assert torch.equal(seen[0], network.body(images)["2"])


def test_norms_are_replaced() -> None:
    torch.manual_seed(1)
    for norm in (whole := build_backbone("resnet18")).modules():
        if isinstance(norm, nn.BatchNorm2d):
            for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                assert value is not None
                nn.init.uniform_(value, 0.5, 1.5)
    whole.eval()
    images = torch.randn(2, 3, 64, 64)
    froze = copy.deepcopy(whole)
    set_norms(froze, "frozen", group_last_blocks=False)
    froze.train()
    torch.testing.assert_close(froze(images), whole(images), rtol=1e-4, atol=1e-4)
    mixed = copy.deepcopy(whole)
    set_norms(mixed, "frozen", group_last_blocks=True)
    groups = [name for name, module in mixed.named_modules() if isinstance(module, nn.GroupNorm)]
    assert groups == [f"layer{i}.1.bn{k}" for i in range(1, 5) for k in (1, 2)]
    assert sum(isinstance(module, FrozenBatchNorm2d) for module in mixed.modules()) == 12
    new, old = mixed.get_submodule("layer3.1.bn2"), whole.get_submodule("layer3.1.bn2")
    assert isinstance(new, nn.GroupNorm) and isinstance(old, nn.BatchNorm2d)
    assert new.num_groups == 32 and torch.equal(new.weight, old.weight) and torch.equal(new.bias, old.bias)
    assert [group_norm(c).num_groups for c in (16, 32, 64, 512)] == [8, 16, 32, 32]
    freeze(mixed, 2)
    trained = {name.split(".")[0] for name, parameter in mixed.named_parameters() if parameter.requires_grad}
    assert trained == {"layer2", "layer3", "layer4", "fc"}
