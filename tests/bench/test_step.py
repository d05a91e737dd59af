"""The step that is measured is that of its terms."""

import torch

from mgd_ssl.bench.config import StepConfig
from mgd_ssl.bench.step import NEEDS, Step, bare_networks
from mgd_ssl.config import RuntimeConfig
from mgd_ssl.run.runtime import process
from mgd_ssl.tasks.terms import BUILDERS


def test_all_terms_together_take_a_step() -> None:
    assert NEEDS.keys() == BUILDERS.keys() | {"mgd"}
    sizes = {"image_size": 32, "batch_size": 4, "queue_size": 64}
    networks = {"student": "thin_resnet10", "teacher": "thin_resnet14"}
    config = StepConfig(terms=tuple(NEEDS), **sizes, **networks, runtime=RuntimeConfig(device="cpu", threads=1))
    with process(config.runtime) as runtime:
        step = Step(config, runtime)
        assert NEEDS["disco"] == step.task.guide.terms["disco"].needs
        assert step().losses.keys() == {"contrastive", *NEEDS}
        bingo = Step(config.model_copy(update={"terms": ("bingo",), "contrast": False}), runtime)
        losses = bingo().losses
        assert losses.keys() == {"bingo"} and torch.isfinite(losses["bingo"])
        bare_networks(config, runtime)()
        local = config.model_copy(update={"terms": ("simreg",), "contrast": False, "local_crops": 2})
        step, batches = Step(local, runtime), list[int]()
        step.task.module.moco.encoder_q.register_forward_hook(lambda _, seen, __: batches.append(len(seen[0])))
        step()
        bare_networks(local, runtime)()
        assert batches == [4, 8]
