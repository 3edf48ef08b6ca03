"""One process of distributed runs on CPUs, for tests: the engine itself distributes over accelerators only.

Started by torchrun with a list of jobs as JSON, which its group does one after the other. A job trains, and writes what
its rank holds at the end to ``rank<K>.pt`` in its folder, or has ``terms`` measured (see ``ddp_terms``).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.integration import ddp_terms
from tskd_yolo import Trainer
from tskd_yolo.train import summary


class CpuParallel(torch.nn.parallel.DistributedDataParallel):
    """The engine asks for the device of index None."""

    def __init__(self, module: torch.nn.Module, device_ids: Any = None, **kwargs: Any) -> None:
        super().__init__(module, **kwargs)


class GlooTrainer(Trainer):
    def _setup_ddp(self) -> None:
        self._agree_on_folder()  # the group is there already

    def final_eval(self) -> None:
        self.learned_at_the_end = self.distiller.learned.state_dict()
        self.computed = self.distiller.cache.computed if self.distiller.cache else None


class Stop(Exception):
    """Ends a run after an epoch, as a kill would."""


def unvalidated(*_: Any, **__: Any) -> dict[str, Any]:
    """The engine's validator wants a CUDA device here."""
    return {"metrics/mAP50(B)": 0.0, "metrics/mAP50-95(B)": 0.0, "classes": []}


def train(folder: Path, arguments: dict[str, Any], stop_after: int | None = None) -> None:
    trainer = GlooTrainer(**arguments)
    terms: list[dict[str, float]] = []
    begun: dict[str, Any] = {}
    trainer.add_callback("on_train_start", lambda t: begun.update(t.distiller.state()["learned"]))
    trainer.add_callback("on_train_batch_end", lambda t: terms.append({k: float(v) for k, v in t.loss_items.items()}))
    if stop_after:
        trainer.add_callback("on_fit_epoch_end", lambda t: stop(t, stop_after))
        try:
            trainer.train()
        except Stop:
            torch.save(trainer.distiller.state()["learned"], folder / f"stopped{dist.get_rank()}.pt")
            return
    trainer.train()
    state = {
        "learned": trainer.learned_at_the_end,
        "student": trainer.model.module.state_dict(),
        "terms": terms,
        "computed": trainer.computed,
        "begun": begun,
        "start_epoch": trainer.start_epoch,
        "world_size": trainer.world_size,
        "save_dir": str(trainer.save_dir),
    }
    torch.save(state, folder / f"rank{dist.get_rank()}.pt")


def stop(trainer: Any, epoch: int) -> None:
    if trainer.epoch + 1 == epoch:
        dist.barrier()  # the first process has saved
        raise Stop


def main() -> None:
    torch.nn.parallel.DistributedDataParallel = CpuParallel  # type: ignore[misc]
    summary.validate = unvalidated
    dist.init_process_group("gloo")
    for job in json.loads(sys.argv[1]):
        folder = Path(job.pop("folder"))
        if "terms" in job:
            ddp_terms.measure(folder, *job["terms"])
        else:
            train(folder, **job)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
