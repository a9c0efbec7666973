"""The loop of fine-tuning: two stages, exact resume, and what comes out at the end.

A step depends only on the weights, the optimizer's state and the number of the step: order, augmentations, mixup and
dropout are determined by the seed. Therefore a run that is killed and resumed gives bit-identical weights.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from camrt import results
from camrt.errors import CamrtError
from camrt.train.data.streams import derived_seed
from camrt.train.finetune.backbone import CamNetwork, open_backbone
from camrt.train.finetune.options import FinetuneOptions, FinetuneResult
from camrt.train.finetune.outcome import Prediction, write_outcome
from camrt.train.finetune.photographs import (
    STEP,
    Photographs,
    normalized,
    open_photographs,
    steps_per_epoch,
    test_batches,
    training_batches,
    transforms_of_torchvision,
)
from camrt.train.options import Reporter, SilentReporter
from camrt.train.parallel import Group, choose_device

LOG, STATE = "_log.jsonl", "_state.pt"
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_MOMENTUM = 0.9
_SYNC_INTERVAL = 10  # steps between two exchanges of signals with the other processes


def finetune(
    options: FinetuneOptions, *, group: Group | None = None, reporter: Reporter | None = None
) -> FinetuneResult:
    """Fine-tune a network, first its new head, then all layers; and write an ONNX explainer, a report and a card.

    SIGINT and SIGTERM stop the training after the current step, with a snapshot.

    Args:
        options: The options.
        group: The processes that train together. The total batch size is ``batch`` times their number.
        reporter: Receives the progress, from the first process only. By default, progress is discarded.

    Returns:
        The result.

    Raises:
        CamrtError: The backbone, the images or options are invalid; the loss is NaN or infinite; or there is a
            snapshot of an earlier run and no option says whether to resume from or to remove it.
    """
    group = group or Group()
    if reporter is None or not group.is_first:
        reporter = SilentReporter()
    if options.threads:
        torch.set_num_threads(options.threads)
    lock: Any = contextlib.nullcontext()
    if group.is_first:
        try:
            options.out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CamrtError(f"cannot be made: {error.strerror or error}", file=str(options.out.parent)) from error
        refusal = f"another camrt finetune writes to {options.out}. Wait for it, or choose another prefix with --out"
        lock = results.hold(options.named(".camrt-lock"), refusal)
    with lock:
        try:
            return _Run(options, group, reporter).run()
        except torch.OutOfMemoryError as error:
            raise CamrtError("the device is out of memory: lower --batch or --size, or use --amp") from error


class _Run:
    """The state of a run."""

    def __init__(self, options: FinetuneOptions, group: Group, reporter: Reporter) -> None:
        self.options, self.group, self.reporter = options, group, reporter
        self.train_images, self.test_images, self.classes = open_photographs(options)
        self.device = choose_device(options.device, group)
        state = self._start()
        self.model: CamNetwork = open_backbone(
            options.backbone, len(self.classes), size=options.size, weights=options.weights, seed=options.seed
        ).to(self.device)
        self.per_epoch = steps_per_epoch(len(self.train_images.paths), options.batch, group.world)
        if len(self.train_images.paths) < options.batch * group.world:
            reporter.say(
                f"note: {len(self.train_images.paths)} training images are less than a batch: images repeat within it"
            )
        self.head_steps = options.head_epochs * self.per_epoch
        self.total = self.head_steps + options.epochs * self.per_epoch
        self.head = {id(parameter) for parameter in self.model.head_parameters()}
        self.learned = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = _optimizer(self.model, self.head, options)
        self.ema = _averaged(self.model, options.ema)
        self.precision = _TYPES[options.amp] if options.amp else None
        self.scaler = torch.amp.GradScaler(self.device.type) if options.amp == "fp16" else None
        self.mixup = _mixup(options, len(self.classes))
        self.step, self.earlier, self.signal = 0, 0.0, 0
        self.losses: list[float] = []
        if state is not None:
            self._restore(state)

    # --------------------------------------------------------------------------------------------------------- the loop

    def run(self) -> FinetuneResult:
        """Train to the end or until a signal."""
        self.began = time.perf_counter()
        counts = f"{len(self.train_images.paths):,} images to train, {len(self.test_images.paths):,} to test"
        self.reporter.say(f"{self.options.backbone}: {counts}, {len(self.classes)} classes, {self.total} steps")
        self.reporter.begin(self.step, self.total)
        with self._handling_signals():
            stopped = self._train()
        if stopped:
            self._snapshot()
            return FinetuneResult(None, None, None, None, self.step, None, {}, self._seconds(), self.signal)
        predictions = self._test()
        seconds = self._seconds()
        if not self.group.is_first:
            return FinetuneResult(None, None, None, None, self.step, None, {}, seconds)
        return write_outcome(
            self._tested_model(), self.options, self.classes, self.test_images, predictions, self.step, seconds
        )

    def _train(self) -> bool:
        """Do all steps. Return whether a signal stopped it."""
        loader = training_batches(
            self.train_images,
            self.model.preprocess,
            self.options,
            range(self.step, self.total),
            rank=self.group.rank,
            world=self.group.world,
            workers=self._workers(),
        )
        every = self.options.snapshot or self.per_epoch
        for batch in loader:
            if self._must_stop():
                return True
            for text in batch.unreadable:
                self.reporter.say(f"warning: {text}. The next image takes its place")
            self._iterate(normalized(batch.images.to(self.device), self.model.preprocess), batch.labels.to(self.device))
            if self.step % self.per_epoch == 0:
                self._end_epoch()
            if self.step % every == 0 and self.step < self.total:
                self._snapshot()
        self._snapshot()
        return False

    def _iterate(self, images: Tensor, labels: Tensor) -> None:
        """Do one step."""
        torch.manual_seed(derived_seed(self.options.seed, STEP, self.step, self.group.rank))
        is_head_stage = self.step < self.head_steps
        self._set_stage(is_head_stage)
        targets: Tensor = labels
        if self.mixup is not None:
            images, targets = self.mixup(images, labels)
        rate = learning_rate(self.options, self.step, self.head_steps, self.per_epoch, self.total)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            logits = self.model(images)
        loss = functional.cross_entropy(logits.float(), targets, label_smoothing=self.options.smoothing)
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        self.group.average([one.grad for one in self.learned if one.grad is not None])
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        self.losses.append(float(loss.detach()))
        if not math.isfinite(self.losses[-1]):
            raise CamrtError(
                f"the loss is {self.losses[-1]} at step {self.step}. Lower --lr and --head-lr; the last snapshot is "
                f"{self.options.named(STATE)}"
            )
        self.step += 1
        self.reporter.show(sum(self.losses) / len(self.losses), rate)
        self.reporter.advance()

    def _set_stage(self, is_head_stage: bool) -> None:
        """In the first stage, the backbone does not change: its normalization uses the stored statistics."""
        self.model.train(not is_head_stage)
        for parameter in self.learned:
            parameter.requires_grad_(not is_head_stage or id(parameter) in self.head)

    def _end_epoch(self) -> None:
        self.group.average([one for one in self.model.buffers() if one.is_floating_point()])
        loss = sum(self.losses) / len(self.losses)
        self.losses = []
        predictions = self._test()
        accuracy = sum(one.is_right for one in predictions) / len(predictions)
        epoch = self.step // self.per_epoch
        stage = "head" if self.step <= self.head_steps else "all"
        record = {"epoch": epoch, "stage": stage, "step": self.step, "loss": loss, "accuracy": accuracy}
        if self.group.is_first:
            results.append(self.options.named(LOG), {**record, "seconds": round(self._seconds(), 3)})
        self.reporter.say(
            f"epoch {epoch} ({stage}): loss {loss:.4g}, test accuracy {accuracy:.2%} ({self._seconds():.0f} s)"
        )

    def _tested_model(self) -> CamNetwork:
        module: CamNetwork = self.model if self.ema is None else self.ema.module
        return module.eval()

    @torch.no_grad()
    def _test(self) -> list[Prediction]:
        """Return the prediction for each test image, in order. Each process does its own share of the images."""
        model = self._tested_model()
        own = np.arange(self.group.rank, len(self.test_images.paths), self.group.world)
        share: Photographs = self.test_images.only(own)
        found: list[tuple[int, Prediction]] = []
        numbers = iter(own.tolist())
        for batch in test_batches(share, model.preprocess, self.options.batch, self._workers()):
            logits = model(normalized(batch.images.to(self.device), model.preprocess)).float()
            scores, best = logits.softmax(1).max(1)
            for label, one, score in zip(batch.labels.tolist(), best.tolist(), scores.tolist(), strict=True):
                found.append((next(numbers), Prediction(label, one, score)))
        return [one for _, one in sorted(each for part in self.group.gather(found) for each in part)]

    def _workers(self) -> int:
        if self.options.workers is not None:
            return self.options.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return 0 if self.device.type == "cpu" else max(1, min(8, cores // self.group.world))

    # -------------------------------------------------------------------------------------------------------- snapshots

    def _start(self) -> dict[str, Any] | None:
        file = self.options.named(STATE)
        if not file.is_file():
            if self.options.resume:
                self.reporter.say(f"found no snapshot {file}: starting at step 0")
            self._remove_log()
            return None
        if self.options.resume:
            try:
                state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
                found, expected = json.loads(state["recipe"]), self._recipe()
            except Exception as error:  # PyTorch's reader raises what it comes across in a broken file
                reason = str(error).partition("\n")[0]
                raise CamrtError(
                    f"cannot be read as a snapshot of camrt finetune ({reason}): start over with --restart",
                    file=str(file),
                ) from error
            changed = [key for key, value in expected.items() if found.get(key) != value]
            if changed:
                parts = ", ".join(f"{key} {found.get(key)!r} instead of {expected[key]!r}" for key in changed)
                raise CamrtError(
                    f"found a snapshot of another run: {parts}. Use the options of that run, or --restart",
                    file=str(file),
                )
            return state
        if not self.options.restart:
            raise CamrtError(
                "found the snapshot of an earlier run. Go on with --resume, start over with --restart, or choose "
                "another prefix with --out",
                file=str(file),
            )
        if self.group.is_first:
            file.unlink(missing_ok=True)
        self._remove_log()
        return None

    def _remove_log(self) -> None:
        if self.group.is_first:
            self.options.named(LOG).unlink(missing_ok=True)

    def _recipe(self) -> dict[str, Any]:
        counts = [len(self.train_images.paths), len(self.test_images.paths), self.group.world]
        return {**self.options.recipe(), "classes": list(self.classes), "images, processes": counts}

    def _snapshot(self) -> None:
        if not self.group.is_first:
            return
        state = {
            "recipe": json.dumps(self._recipe()),
            "step": self.step,
            "seconds": self._seconds(),
            "losses": self.losses,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
        }
        content = io.BytesIO()
        torch.save(state, content)
        results.write(self.options.named(STATE), content.getvalue())

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.earlier, self.losses = state["step"], state["seconds"], list(state["losses"])
        self.reporter.say(f"resuming from step {self.step}")
        if self.group.is_first:
            _cut_log(self.options, self.step)

    def _seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.began

    # ---------------------------------------------------------------------------------------------------------- signals

    @contextlib.contextmanager
    def _handling_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop the training after the current step; a second one ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(number: int, _: Any) -> None:
            if self.signal and self.group.world == 1:
                raise KeyboardInterrupt
            self.signal = number

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _must_stop(self) -> bool:
        if self.group.world > 1:
            if self.step % _SYNC_INTERVAL:
                return False
            self.signal = self.group.maximum(self.signal)
        return bool(self.signal)


def learning_rate(options: FinetuneOptions, step: int, head_steps: int, per_epoch: int, total: int) -> float:
    """Return the learning rate of a step.

    Each stage has half a period of a cosine from its largest rate to 0 (Loshchilov and Hutter 2017). In the second, the
    rate first rises linearly for ``warmup`` epochs (Goyal et al. 2017).

    Args:
        options: The options.
        step: The number of the step, from 0.
        head_steps: The number of steps in the first stage.
        per_epoch: The number of steps in an epoch.
        total: The number of steps in both stages.
    """
    if step < head_steps:
        return options.head_rate * (1 + math.cos(math.pi * step / head_steps)) / 2
    done, steps = step - head_steps, total - head_steps
    rising = min(options.warmup * per_epoch, steps)
    if done < rising:
        return options.rate * (done + 1) / rising if rising >= 1 else options.rate
    return options.rate * (1 + math.cos(math.pi * (done - rising) / max(1, steps - rising))) / 2


def _optimizer(model: CamNetwork, head: set[int], options: FinetuneOptions) -> torch.optim.Optimizer:
    """Return the optimizer. Biases and the parameters of normalization (one axis) have no weight decay."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in learned if one.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [one for one in learned if one.dim() <= 1], "weight_decay": 0.0},
    ]
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=options.rate, momentum=_MOMENTUM, nesterov=True)
    return torch.optim.AdamW(groups, lr=options.rate)


def _averaged(model: nn.Module, decay: float) -> AveragedModel | None:
    """Return the moving average of weights and statistics of a model; None without a decay."""
    if not decay:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def _mixup(options: FinetuneOptions, classes: int) -> Any:
    """Return torchvision's mixup (Zhang et al. 2018); None without an alpha."""
    return transforms_of_torchvision().MixUp(alpha=options.mixup, num_classes=classes) if options.mixup else None


def _cut_log(options: FinetuneOptions, step: int) -> None:
    """Remove the records of epochs after the snapshot: they come again."""
    file = options.named(LOG)
    if not file.is_file():
        return
    with file.open("rb") as stream:
        kept = [line for line, record in results.parse_lines(stream, file) if record and record["step"] <= step]
    results.write(file, b"".join(kept))
