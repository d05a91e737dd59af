"""Sizes for which parts of a step are lowered; apart, so that the test loads nothing else."""

BATCH, SIZE, HALF_BYTES = 256, 224, 2
STAGES = [(64, 56), (128, 28), (256, 14), (512, 7)]  # of ResNet-18; ResNet-50's have four times the channels
