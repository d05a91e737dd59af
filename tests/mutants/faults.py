"""The faults: what is replaced by what, and which tests must notice.

`old` is found by searching all sources of the packages, so it survives files that move. Where the same text stands in
several places, `inside` names the class or function, for instance `Meter.means`.
"""

from tests.mutants.bags_and_crops import BAGS_AND_CROPS
from tests.mutants.fault import Fault
from tests.mutants.use import USE

ALGORITHM = ("tests/mgd",)
AUGMENT = ("tests/moco/test_augment.py",)
BEGINNING = ("tests/tasks/test_teachers.py", "-k", "begins")
BACKENDS = ("tests/data/test_views.py",)
BUILDER = ("tests/moco/test_builder.py",)
DATA = ("tests/data/test_folder.py", "tests/data/test_samples.py", "tests/data/test_order.py")
DETECTOR = ("tests/tasks/detection/test_retinanet.py",)
ENCODERS = ("tests/networks/test_backbones.py",)
FEATURES = ("tests/evaluation/test_features.py",)
HEADS = ("tests/linear_eval/test_heads.py",)
HUB = ("tests/networks/test_hub.py",)
KNOWN_FILES = ("tests/commands/test_teachers.py",)
KNN = ("tests/evaluation/test_knn.py",)
LAYOUTS = ("tests/networks/test_layouts.py",)
METER = ("tests/training/test_meter.py",)
METHOD = ("tests/tasks/test_moco.py",)
PADDING = ("tests/tasks/detection/test_padding.py",)
PROBE = ("tests/linear_eval/test_probe.py",)
PROTOCOLS = ("tests/linear_eval/test_protocols.py",)
RANKS = ("tests/test_distributed.py", "tests/tasks/test_two_processes.py")
REPLAY = ("tests/test_reference.py", "-k", "resnet18")
RESUME = ("tests/tasks/test_resume.py", "-k", "middle or knn_rows")
ROWS = ("tests/training/test_loop.py", "tests/training/test_losses.py", "-k", "row or rows or finite or saved")
SCHEDULE = ("tests/training/test_schedule.py",)
SETTINGS = ("tests/test_settings.py",)
SHAPES = ("tests/tasks/detection/test_samples.py",)
SHORTEN = ("tests/linear_eval/test_shorten.py",)
SOURCES = ("tests/linear_eval/test_sources.py",)
STEP = ("tests/tasks/test_training_step.py",)
TAPS = ("tests/networks/test_taps.py",)
TEACHER = ("tests/networks/test_teacher.py", "tests/tasks/test_training_step.py", "-k", "folded or evaluation_mode")
VITS = ("tests/networks/test_vit.py",)
WEIGHTS = ("tests/networks/test_weights.py", "tests/networks/test_teacher_maps.py")

MOCO = [
    Fault("EMA factor of the GPU path", "_foreach_mul(queries, 1 - self.momentum)", "_foreach_mul(queries, self.momentum)", BUILDER),
    Fault("EMA factor of the CPU path", "query * (1 - self.momentum)", "query * self.momentum", BUILDER),
    Fault("softmax over the last part of the queue", "mean.mul_(kept)", "mean.mul_(0)", ("tests/distillation/test_anchors.py",)),
    Fault("fused SGD: memory formats mixed up", "_block(gradient, weight).contiguous()", "gradient", ("tests/training/test_sgd.py",)),
    Fault("key encoder never follows", "self.update_key_encoder()", "pass", BUILDER),
    Fault("key encoder trained by gradient", "parameter.requires_grad_(False)", "parameter.requires_grad_(True)", BUILDER),
    Fault("keys not normalised", "unshuffle_batch(F.normalize(k, dim=1), order,", "unshuffle_batch(k, order,", BUILDER),
    Fault("queries normalised over the batch", "F.normalize(self.encoder_q(im_q), dim=1)", "F.normalize(self.encoder_q(im_q), dim=0)", BUILDER),
    Fault("temperature multiplies", ".div_(self.temperature)", ".mul_(self.temperature)", BUILDER),
    Fault("positive of a neighbour", '"nc,nc->n", q.float(), k.float())', '"nc,nc->n", q.float(), k.float().roll(1, 0))', BUILDER, "MoCo.forward"),
    Fault("queue pointer stands still", "self.queue_ptr.add_(count)", "self.queue_ptr.add_(0)", BUILDER),
    Fault("queue not normalised at the start", "F.normalize(keys, dim=0)", "keys", BUILDER),
    Fault("queue gets this rank's keys alone", "gather_batch(keys).to(self.queue.dtype)", "keys.to(self.queue.dtype)", RANKS),
    Fault("keys encoded in order", "else exchange(local, order)", "else local", RANKS, "shuffle_batch"),
    Fault("keys left in shuffled order", "exchange(local, torch.argsort(order))", "exchange(local, order)", RANKS),
    Fault("one permutation for all steps", "torch.Generator().manual_seed(seed))", "torch.Generator().manual_seed(0))", BUILDER, "permutation"),
    Fault("sums are not summed", "dist.all_reduce(values)", "pass", RANKS, "sum_over_ranks"),
    Fault("draws ignore their purpose", "zlib.crc32(purpose.encode())", "0", DATA),
    Fault("draws ignore their address", "counter = [0, *address,", "counter = [0, *(0 for _ in address),", AUGMENT),
]  # fmt: skip

VIEWS = [
    Fault("every view is mirrored", "flip < policy.flip_probability", "flip < 2", AUGMENT),
    Fault("brightness only darkens", "policy.brightness * (2 * brightness - 1)", "policy.brightness * (brightness - 1)", AUGMENT),
    Fault("crops never touch the right edge", "(width - crop_width + 1)", "(width - crop_width)", AUGMENT),
    Fault("crops uniform in the aspect ratio", "math.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * ratio_draw)", "policy.ratio[0] + (policy.ratio[1] - policy.ratio[0]) * ratio_draw", AUGMENT),
    Fault("v1's hue of v2", "jitter_probability=1.0, hue=0.4", "jitter_probability=1.0, hue=0.1", AUGMENT),
    Fault("device: one colour operation twice", '("first", "second", "third", "fourth")', '("first", "second", "third", "third")', BACKENDS),
    Fault("device: blur of two passes", "for _ in range(3):\n            total", "for _ in range(2):\n            total", BACKENDS),
    Fault("CPU: saturation towards black", "(1 - view.saturation) * GREY", "0 * GREY", BACKENDS),
    Fault("query and key are one view", "*key, v)) for v in views", "*key, 0)) for v in views", DATA),
    Fault("centre crop of the whole image", "self.size * 256 / 224", "self.size", DATA),
    Fault("the same order in every epoch", '"order", epoch)', '"order", 0)', DATA),
    Fault("every rank reads the first part", "self.rank * local", "0 * local", DATA),
    Fault("batches overlap", "start = step * self.batch_size", "start = step", DATA),
    Fault("mean of the normalisation swapped", "MEAN = (0.485, 0.456, 0.406)", "MEAN = (0.406, 0.456, 0.485)", STEP),
    Fault("deviation of the normalisation swapped", "DEVIATION = (0.229, 0.224, 0.225)", "DEVIATION = (0.225, 0.224, 0.229)", STEP),
    Fault("pixels divided by 256", "torch.tensor(values) * 255", "torch.tensor(values) * 256", STEP),
]  # fmt: skip

DISTILLATION = [
    Fault("stage weights unused", "weight * partial_l2(normalised", "partial_l2(normalised", ALGORITHM),
    Fault("loss not divided by the batch", "return total / student_maps[0].shape[0]", "return total", ALGORITHM),
    Fault("student's norm left out", "norm(student_map.float())", "student_map.float()", ALGORITHM),
    Fault("stage weights the wrong way round", "0.5 ** (num_stages - 1 - i)", "0.5**i", ALGORITHM),
    Fault("targets in half precision", "target.map.float()", "target.map.bfloat16().float()", ALGORITHM),
    Fault("new assignment thrown away", "old.copy_(new)", "pass", ALGORITHM, "MGD.set_assignments"),
    Fault("share of changed channels upside down", "1 - stays.double().mean().item()", "stays.double().mean().item()", ALGORITHM),
    Fault("sparse matching takes whole groups", "return 1 if self.takes_one else", "return", ALGORITHM),
    Fault("costs normalised over channels", "F.normalize(pixels, dim=1)", "F.normalize(pixels, dim=2)", ALGORITHM),
    Fault("costs with the wrong sign", "2 * student_map.shape[0] - 2 *", "2 * student_map.shape[0] + 2 *", ALGORITHM),
    Fault("the worst assignment", "linear_sum_assignment(np.tile(matrix, (group, 1)))", "linear_sum_assignment(np.tile(matrix, (group, 1)), maximize=True)", ALGORITHM),
    Fault("assignment read across", ".reshape(group, student_channels).T.copy()", ".reshape(student_channels, group).copy()", ALGORITHM),
    Fault("costs summed, not averaged", "cost / self.num_images", "cost", ALGORITHM),
    Fault("batches counted as images", "self.num_images += student_maps[0].shape[0]", "self.num_images += 1", ALGORITHM),
    Fault("amp: sign of the smaller one", "high + low", "high - low", ALGORITHM),
    Fault("amp: largest margin", "margin[assignment].mean(dim=1)", "margin[assignment].amax(dim=1)", ALGORITHM, "amp"),
    Fault("max: mean margin", "margin[assignment].amax(dim=1)", "margin[assignment].mean(dim=1)", ALGORITHM, "max_pool"),
    Fault("mean: a sum", "target / assignment.shape[1]", "target", ALGORITHM),
    Fault("random drop: always the first", "torch.randint(assignment.shape[1],", "torch.randint(1,", ALGORITHM),
    Fault("partial loss: either one negative", "(distance <= 0) & (clipped <= 0)", "(distance <= 0) | (clipped <= 0)", ALGORITHM),
    Fault("margin unused", "target.maximum(margin[:, None, None])", "target.clone()", ALGORITHM),
    Fault("half the gradient", "distance * (2 * gradient)", "distance * gradient", ALGORITHM),
    Fault("margin of the positive part", "mean - std * density", "mean + std * density", ALGORITHM),
    Fault("two deviations for three", "-3 * std", "-2 * std", ALGORITHM),
    Fault("measured margin over all values", "(teacher_map < 0)", "(teacher_map < torch.inf)", ALGORITHM),
    Fault("matching in training mode", "self.module.eval()", "pass", REPLAY, "Pretraining.rematch"),
    Fault("matching ends training mode", "self.module.train()", "pass", REPLAY, "Pretraining.rematch"),
    Fault("every rank matches on the first part", "indices[rank() :: world_size()]", "indices[:: world_size()]", RANKS, "one_pass"),
    Fault("statistics of BatchNorm not shared", "share_norm_statistics(self.module.moco.encoder_q)", "pass", RANKS, "Pretraining.rematch"),
    Fault("margins never measured", 'measured = config.mgd.margin == "measured"', "measured = False", SETTINGS, "Pretraining"),
    Fault("weight of the distillation unused", "self._now[name] * term.loss", "term.loss", SETTINGS),
    Fault("accuracy of the first negative", "logits[:, 0]", "logits[:, 1]", METHOD, "GuidedMoCo.nearer"),
    Fault("losses under each other's name", "zip(self.names, sums.tolist()", "zip(sorted(self.names), sums.tolist()", REPLAY),
    Fault("tapped ReLUs in place", "modules[name].inplace = False", "pass", TAPS),
    Fault("ReLUs read at their first call", "if self._maps is not None:", "if self._maps is not None and self._maps[position] is None:", TAPS),
    Fault("margins of an inner BatchNorm", '"bn3" if isinstance(network.get_submodule(block), Bottleneck) else "bn2"', '"bn2"', ENCODERS),
    Fault("folded teacher forgets its margins", "self._margins = self.margins()", "pass", TEACHER),
    Fault("teacher trains along", "super().train(False)", "super().train(mode)", TEACHER, "Frozen.train"),
    Fault("weights of the key encoder", '        "encoder_q.",', '        "encoder_k.",', WEIGHTS),
    Fault("weights that are not finite pass", "not value.isfinite().all()", "False", WEIGHTS),
    Fault("untrained weights pass", "if means and all(not value.any() for value in means)", "if False", WEIGHTS),
]  # fmt: skip

LOOP = [
    Fault("weight decay 0", '{"weight_decay": weight_decay', '{"weight_decay": 0.0', SETTINGS),
    Fault("momentum of SGD 0", "optim.momentum, optim.weight_decay)", "0.0, optim.weight_decay)", SETTINGS),
    Fault("learning rate never written", 'group["lr"] = self.lr', "pass", SETTINGS),
    Fault("warm-up 0", "optim.warmup_epochs, optim.lr_schedule", "0, optim.lr_schedule", SETTINGS),
    Fault("learning rate by step alone", "optim.warmup_epochs, optim.lr_schedule", 'optim.warmup_epochs, "step"', SETTINGS),
    Fault("learning rate of the next step", "self.learning_rate(step)", "self.learning_rate(step + 1)", SETTINGS),
    Fault("teacher is shown the key view", 'teacher.seen(views["query"])', 'teacher.seen(views["key"])', STEP),
    Fault("query and key views swapped", 'return views["query"], views.get("key"), targets', 'return views["key"], views.get("query"), targets', STEP),
    Fault("shuffle seed constant over steps", 'keyed_seed(seed, "shuffle", step)', "0", STEP),
    Fault("random-drop seed constant over steps", 'manual_seed(keyed_seed(self.seed, "random drop", step))', "manual_seed(0)", STEP),
    Fault("every step is the first to the guide", "self.guide.prepare(seen, step)", "self.guide.prepare(seen, 0)", STEP),
    Fault("BatchNorm statistics broadcast", "broadcast_buffers=False", "broadcast_buffers=True", RANKS),
    Fault("gradients add up", "self.optimizer.zero_grad(set_to_none=True)", "pass", STEP),
    Fault("keys never enqueued", "self.module.moco.enqueue(carried)", "pass", STEP),
    Fault("matching at every epoch", "self._starts(updates)", "self._starts(range(epochs))", SETTINGS),
    Fault("k-NN at every epoch", "range(0, epochs, config.knn.every_epochs)", "range(epochs)", SETTINGS),
    Fault("averages never begin anew", "self.meter.reset()", "pass", ROWS),
    Fault("losses of rank 0 alone logged", "sum_over_ranks(self.sums.clone()) / (max(1, self.num_steps) * world_size())", "self.sums / max(1, self.num_steps)", RANKS),
    Fault("logged losses are sums over ranks", "(max(1, self.num_steps) * world_size())", "max(1, self.num_steps)", RANKS),
    Fault("steps not counted", "self.num_steps += 1", "self.num_steps = 1", METER),
    Fault("a loss that is not finite goes on", "math.isfinite(first.item())", "False", METER),
    Fault("speed with pauses", "self.started += time.monotonic() - began", "pass", METER),
    Fault("waiting of the last batch alone", "self.waited += time.monotonic() - asked", "self.waited = time.monotonic() - asked", METER),
    Fault("speed since the start", "self.start()", "pass", METER, "Clock.read"),
    Fault("weights that are not finite are saved", "update.check_finite(self.session.step, self.session.kept)", "pass", ROWS),
    Fault("momentum lost when a run goes on", 'self.optimizer.load_state_dict(state["optimizer"])', "pass", RESUME),
    Fault("averages lost when a run goes on", 'record.meter.load(session.state["meter"])', "pass", RESUME),
    Fault("moco.temperature reaches nothing", "moco_config.temperature", "0.2", SETTINGS),
    Fault("moco.momentum reaches nothing", "moco_config.momentum", "0.999", SETTINGS),
    Fault("mgd.stage_weights reach nothing", "mgd_config.stage_weights[tap.stage - 1] for tap", "1.0 for tap", SETTINGS),
    Fault("mgd.reducer reaches nothing", "mgd_config.reducer", '"amp"', SETTINGS),
    Fault("mgd.margin reaches nothing", 'mgd_config.margin == "teacher"', "True", SETTINGS),
    Fault("mgd.weight reaches nothing", "        settings.weight,\n", "        1e-4,\n", SETTINGS),
    Fault("warm-up from zero", "(0.001 + 0.999 *", "(0.999 *", SCHEDULE),
    Fault("cosine ends too high", "math.pi * epoch / self.epochs", "math.pi * epoch / (self.epochs + 1)", SCHEDULE),
    Fault("matching epochs too early", "10 ** (last * i / 9)", "10 ** (last * i / 10)", SCHEDULE),
]  # fmt: skip

EVALUATION = [
    Fault("k-NN: temperature multiplies", ".astype(np.float64) / temperature", ".astype(np.float64) * temperature", KNN),
    Fault("k-NN: top-5 is top-6", "(ahead < 5)", "(ahead < 6)", KNN),
    Fault("k-NN: a class without votes is a hit", "voted = own[:, 0] > 0", "voted = own[:, 0] >= 0", KNN),
    Fault("k-NN: votes of the ranks before", "start = k", "start = 0", KNN, "prefix_votes"),
    Fault("k-NN: every vote counts 1", "weights = np.exp(", "weights = 1.0 + 0 * np.exp(", KNN),
    Fault("few labels: no class is kept", "max(1, round(share * len(members)))", "round(share * len(members))", KNN),
    Fault("features not normalised", "F.normalize(features, dim=1) if self.normalise else features", "features", FEATURES),
    Fault("features in training mode", "self.trunk.eval()", "pass", FEATURES),
    Fault("all modules left in evaluation mode", "module.training = mode", "pass", FEATURES, "FeatureExtractor"),
    Fault("label of the unreadable image", "labels[used.numpy()]", "labels[indices]", FEATURES),
    Fault("monitor: queries vote", "return knn_accuracy(bank, queries, self", "return knn_accuracy(queries, bank, self", SETTINGS),
    Fault("linear: top-5 is top-6", "(rank < 5)", "(rank < 6)", HEADS),
    Fault("linear: ties are hits", "(logits < right)", "(logits <= right)", HEADS),
    Fault("linear: no weight decay", ".addcmul_(parameter, decay)", "", HEADS),
    Fault("linear: no momentum", "velocity.mul_(self.momentum)", "velocity.mul_(0)", HEADS),
    Fault("linear: gradient is a sum", ".expand(label.shape)).div_(total)", ".expand(label.shape))", HEADS),
    Fault("linear: ranks keep their gradients", "sum_over_ranks(gradient)", "pass", ("tests/linear_eval/test_command.py", "-k", "two_processes and live"), "Heads"),
    Fault("linear: heads start ten times as large", "normal_(0, 0.01,", "normal_(0, 0.1,", HEADS),
    Fault("linear: measured on training images", "self.val.all(", "self.train_source.all(", PROBE, "Probe.result"),
    Fault("linear: held-out images train", "np.setdiff1d(np.arange(num_images), judged_on)", "np.arange(num_images)", PROBE),
    Fault("linear: the worst heads go on", "sorted(order[:left])", "sorted(order[-left:])", PROBE),
    Fault("linear: learning rate never falls", "self.protocol.lr_factor(self.step / stage.steps)", "self.protocol.lr_factor(0)", PROBE),
    Fault("linear: ranked by loss alone", "(-scores.top1[head], losses[head])", "losses[head]", PROBE),
    Fault("linear: velocity lost when it goes on", 'self.heads.load(state["heads"])', "pass", PROBE),
    Fault("linear: a milestone late", "self.decay ** sum(epoch >= milestone", "self.decay ** sum(epoch > milestone", PROTOCOLS),
    Fault("linear: half a cosine", "math.cos(math.pi * progress)", "math.cos(math.pi * progress / 2)", PROTOCOLS),
    Fault("stretch: momentum forgotten", "along / (1 - momentum)", "along", SHORTEN),
    Fault("stretch: as long as can be everywhere", "torch.where(share < 1, times, 1.0)", "self.times", SHORTEN),
    Fault("principal directions of sums", "/ sum_over_ranks(count)", "", SHORTEN),
    Fault("live: the same crop in every epoch", "epoch=epoch, image=index, view=0", "epoch=0, image=index, view=0", SOURCES),
    Fault("live: label of the unreadable image", "used.append(where)", "used.append(index)", SOURCES, "RandomCrops"),
    Fault("standardised by variance", "(variance + 1e-5).rsqrt()", "1 / (variance + 1e-5)", PROBE),
    Fault("standardised without centring", "(x - self.mean)", "x.clone()", SOURCES),
    Fault("crops of a probe as in pretraining", "scale=(0.08, 1.0)", "scale=(0.2, 1.0)", PROTOCOLS),
]  # fmt: skip

TEACHERS = [
    Fault("layout: the head of the momentum copy", 'head="base_encoder.fc."', 'head="momentum_encoder.fc."', LAYOUTS),
    Fault("layout: DINO's student", '    "teacher",  # DINO', '    "student",  # DINO', LAYOUTS),
    Fault("layout: ReLU in DINO's head", "nn.GELU if place.layout.gelu else nn.ReLU", "nn.ReLU", LAYOUTS),
    Fault("hub: queries for keys", '[part["query"], part["key"], part["value"]]', '[part["key"], part["query"], part["value"]]', VITS),
    Fault("hub: the stride is not looked at", '"downsample_in_bottleneck": False, ', "", HUB),
    Fault("input: only scaled", "images * network.input_scale + network.input_shift", "images * network.input_scale", HUB),
    Fault("input: SimCLR's like all others", "PIXELS if seen.known.pixels else USUAL", "USUAL", HUB),
    Fault("vit: the last block twice", "[last * 2 // 3, last]", "[last - 1, last - 1]", VITS),
    Fault("vit: tokens before the norm", "indices=blocks, norm=True", "indices=blocks, norm=False", VITS),
    Fault("vit: the images keep their size", "self.grid_per_pixel = edge / image_size", "pass", VITS),
    Fault("known: a name proves", "Recognised(named, False,", "Recognised(named, True,", KNOWN_FILES),
    Fault("student: weights of the file left out", "**without_head(encoder, trained.backbone.state_dict())", "", BEGINNING),
]  # fmt: skip

CLASSIFIER = ("tests/tasks/test_classifier.py",)
CLASSIFY = ("tests/tasks/test_classify_settings.py", "-k", "reach or mixed or average")
CUB = ("tests/data/test_cub.py",)
PAIRS = ("tests/distillation/test_pairs.py",)
PARTS = ("tests/test_task_reference_units.py", "-k", "schedules or logit")
CLASSES = ("tests/report/test_classification.py", "-k", "hand or epoch")

CLASSIFICATION = [
    Fault("KD: no square of the temperature", "* self.temperature**2", "", PARTS),
    Fault("KD: student and teacher exchanged", "F.kl_div(ours, theirs,", "F.kl_div(theirs, ours,", PARTS),
    Fault("milestone an epoch late", "self.factor ** sum(epoch >= milestone", "self.factor ** sum(epoch > milestone", PARTS, "WarmupDecay"),
    Fault("warm-up of classify from the peak", "(1 - self.warmup_start)", "(0 - self.warmup_start)", PARTS),
    Fault("mixup: labels of the images alone", "labels[mixing.order]", "labels", CLASSIFIER),
    Fault("mixup: shares exchanged", "torch.lerp(images[self.order], images, self.share)", "torch.lerp(images, images[self.order], self.share)", CLASSIFY),
    Fault("mixup: one share for all steps", 'self.config.seed, "mixup", step,', 'self.config.seed, "mixup",', ("tests/tasks/test_classification.py", "-k", "drawn_anew")),
    Fault("average of the weights never follows", "self.average.update_parameters(self.module.student)", "pass", CLASSIFY),
    Fault("trained weights left in place of the average", "self.module.student if self.average is None else self.average.module", "self.module.student", CLASSIFY),
    Fault("weight decay on norms", 'group["params"] if parameter.ndim > 1', 'group["params"] if parameter.ndim > 0', CLASSIFY),
    Fault("CUB: parts exchanged", '{"train": "1", "val": "0"', '{"train": "0", "val": "1"', CUB),
    Fault("named modules paired with the last stage", "partners[-1]", "usual[-1]", PAIRS),
    Fault("maps of other sizes matched", "_check_sizes(student, teacher.backbone, pairs, image_size)", "pass", PAIRS, "pair"),
    Fault("report: best classes for the worst", "np.argsort(share, kind", "np.argsort(-share, kind", CLASSES),
    Fault("report: last epoch called best", 'same images", "best_")', 'same images", "")', CLASSES),
]  # fmt: skip

TERM = ("tests/test_term_reference.py", "tests/distillation/test_formulas.py")
TERM_RUNS = ("tests/tasks/test_terms.py", "tests/distillation/test_weighting.py")
TERM_SETTINGS = ("tests/test_settings.py", "-k", "of_a_term")
COLLAPSE = ("tests/training/test_collapse.py",)

TERMS = [
    Fault("SEED: temperatures exchanged", "s / self.student_temperature, t / self.teacher_temperature", "s / self.teacher_temperature, t / self.student_temperature", TERM),
    Fault("SEED: own embedding left out", "torch.logaddexp(own, ours)", "ours", TERM, "Seed"),
    Fault("DisCo: one view of two", "[network.views[name].embedding() for name in self.others]", "[]", TERM),
    Fault("SimReg: not on the sphere", "F.normalize(predicted.float(), dim=1) * student", "predicted.float() * student", TERM),
    Fault("SimReg: no BatchNorm", "modules += [nn.BatchNorm1d(after), nn.ReLU()]", "modules += [nn.Identity(), nn.ReLU()]", TERM),
    Fault("CompRess: divergence the wrong way", "theirs = mean[len(mapped) :]", "theirs = mean[: len(target)]", TERM),
    Fault("BINGO: no warm-up", "0.0 if teacher.epoch < self.warm_epochs else 0.5", "0.5", TERM),
    Fault("BINGO: mixed shares exchanged", "share * nce(mixed, p) + (1 - share)", "(1 - share) * nce(mixed, p) + share", TERM),
    Fault("queue never moves on", "self.ptr.add_(count).remainder_(size)", "pass", TERM),
    Fault("queue of this rank alone", "rows = gather_batch(rows).to(self.rows.dtype)", "rows = rows.to(self.rows.dtype)", RANKS),
    Fault("box not cut off at the edges", "min(height, row + half_height)", "row + half_height", TERM),
    Fault("a resting term has no gradient", "0.0 * torch.stack(parameters).sum() if parameters else", "", RANKS),
    Fault("gradients of one rank", "whole = sum_over_ranks(torch.stack(squares))", "whole = torch.stack(squares)", RANKS),
    Fault("cosine of a weight is a line", "0.5 * (1 + math.cos(math.pi * gone))", "1 - gone", TERM_SETTINGS, "Weight"),
    Fault("a term never sets in late", "self.since <= epoch < self.until", "epoch < self.until", TERM_SETTINGS),
    Fault("balance unused", "self.get_buffer(f\"factor_{name}\").mul_(ratio)", "pass", TERM_RUNS),
    Fault("balance without the schedule", "weight.balance) * self._now[name] / weight.value", "weight.balance)", TERM_RUNS),
    Fault("views drawn that nobody looks at", 'VIEWS[:2] if "key" in looked_at else VIEWS[:1]', "VIEWS[:2]", TERM_RUNS),
    Fault("bags of other images pass", "if fingerprint != images.fingerprint():", "if False:", TERM_RUNS),
    Fault("effective rank of squares", "shares = values / values.sum()", "shares = values**2 / (values**2).sum()", COLLAPSE),
]  # fmt: skip

DETECTION = [
    Fault("detection: P6 of P5", "extra.use_P5 = False", "pass", DETECTOR),
    Fault("detection: anchors at torchvision's strides", "for s in self.strides", "for s in (6, 16, 32, 64, 128)", DETECTOR),
    Fault("detection: neither background nor object counts", "proposal_matcher.BETWEEN_THRESHOLDS", "proposal_matcher.BELOW_LOW_THRESHOLD", DETECTOR),
    Fault("detection: average of the batch, not of an image", "self._average(held / len(targets))", "self._average(held)", DETECTOR),
    Fault("detection: boxes are not mirrored", "w - corners[:, 2], corners[:, 1], w - corners[:, 0], corners[:, 3]", "corners[:, 0], corners[:, 1], corners[:, 2], corners[:, 3]", SHAPES),
    Fault("detection: crowds are targets", "found.of(~found.crowd)", "found", SHAPES),
    Fault("detection: padding is the mean's negative", "images * valid_positions(sizes, edges, edges)", "images", SHAPES),
    Fault("detection: padding counts in the loss", "normalised = normalised * target.valid", "pass", PADDING),
]  # fmt: skip

FAULTS = [
    *MOCO,
    *VIEWS,
    *DISTILLATION,
    *LOOP,
    *EVALUATION,
    *TEACHERS,
    *CLASSIFICATION,
    *TERMS,
    *BAGS_AND_CROPS,
    *DETECTION,
    *USE,
]
