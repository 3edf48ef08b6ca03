"""One process of a distributed run on CPUs, for tests: the engine itself distributes over accelerators only.

Started by torchrun with the run's arguments as JSON; writes what its rank holds at the end to ``rank<K>.pt``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tskd_yolo import Trainer
from tskd_yolo.train import summary


class CpuParallel(torch.nn.parallel.DistributedDataParallel):
    """The engine asks for the device of index None."""

    def __init__(self, module: torch.nn.Module, device_ids: Any = None, **kwargs: Any) -> None:
        super().__init__(module, **kwargs)


class GlooTrainer(Trainer):
    def _setup_ddp(self) -> None:
        dist.init_process_group("gloo")
        self._agree_on_folder()

    def final_eval(self) -> None:
        self.learned_at_the_end = self.distiller.learned.state_dict()
        self.computed = self.distiller.cache.computed if self.distiller.cache else None


def unvalidated(*_: Any, **__: Any) -> dict[str, float]:
    """The engine's validator wants a CUDA device here."""
    return {"metrics/mAP50(B)": 0.0, "metrics/mAP50-95(B)": 0.0}


def main() -> None:
    arguments = json.loads(sys.argv[1])
    out, stop_after = arguments.pop("out", None), arguments.pop("stop_after", None)
    torch.nn.parallel.DistributedDataParallel = CpuParallel  # type: ignore[misc]
    summary.validate = unvalidated
    trainer = GlooTrainer(**arguments)
    terms: list[dict[str, float]] = []
    begun: dict[str, Any] = {}
    trainer.add_callback("on_train_start", lambda t: begun.update(t.distiller.state()["learned"]))
    trainer.add_callback("on_train_batch_end", lambda t: terms.append({k: float(v) for k, v in t.loss_items.items()}))
    if stop_after:
        trainer.add_callback("on_fit_epoch_end", lambda t: stop(t, stop_after))
    trainer.train()
    rank = int(os.environ["RANK"])
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
    torch.save(state, Path(out or arguments["project"]) / f"rank{rank}.pt")
    dist.destroy_process_group()


def stop(trainer: Any, epoch: int) -> None:
    if trainer.epoch + 1 == epoch:
        dist.barrier()  # the first process has saved
        print("stopped as asked", flush=True)
        os._exit(1)


if __name__ == "__main__":
    main()
