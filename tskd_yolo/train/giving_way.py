"""Hook points of a student that overtakes its teacher: the terms give way, by what each validation shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ultralytics.utils import LOGGER, colorstr

from tskd_yolo.config import Config
from tskd_yolo.distill.agreement import watched
from tskd_yolo.distill.distiller import Distiller
from tskd_yolo.distill.lead import Lead, best
from tskd_yolo.distill.terms import HeadTerm, Term
from tskd_yolo.train import hooks, summary
from tskd_yolo.train.engine import Engine
from tskd_yolo.train.processes import FIRST, Processes


@hooks.noting
class GivingWayMixin(Engine):
    """Compares student and teacher after every epoch, class by class: see :class:`tskd_yolo.distill.lead.Lead`."""

    config: Config
    distiller: Distiller | None

    def _watch_lead(self, distiller: Distiller, taught: Sequence[dict[str, Any]]) -> None:
        """From the teachers' scores; nothing is watched where there is none, or where it is not wanted."""
        known = [each.classes.known for each in distiller.teachers]
        if not self.config.give_way or not any(known):
            return
        if not self.args.val:
            LOGGER.warning(
                "with val=False the terms do not give way to a lead of the student: whether it has overtaken its "
                "teacher is seen on the validation set."
            )
            return
        distiller.lead = Lead(best(taught, known, len(self.data["names"])), self.config.give_way)
        if distiller.past_lead is not None:
            distiller.lead.restore(distiller.past_lead)

    def _agree_on_lead(self, processes: Processes) -> None:
        """At the start of an epoch; only the first process has validated as a whole."""
        if self.distiller is None or self.distiller.lead is None:
            return
        lead = self.distiller.lead
        together = lead.values.to(self.device)
        processes.broadcast([together])
        lead.values = together.cpu()
        weigh_classes(self.distiller.terms, lead, self.device)

    def _settle_agreement(self, distiller: Distiller, progress: float) -> None:
        """Before a step, after so many epochs."""
        images = len(self.train_loader) * self.batch_size
        if distiller.agreement is not None and progress >= watched(self.epochs, images):
            distiller.agreement.settle()

    def _tell_agreement(self, distiller: Distiller) -> None:
        """After an epoch: what the terms have come to count."""
        if FIRST and distiller.agreement is not None and (news := distiller.agreement.news()):
            LOGGER.info(f"{colorstr('tskd-yolo:')} {news}.")

    def validate(self) -> Any:
        """The engine's."""
        result = super().validate()
        if FIRST and self.distiller is not None and self.distiller.lead is not None and result[0] is not None:
            lead = self.distiller.lead
            lead.see([row["AP50-95"] if row else None for row in summary.class_scores(self.validator)])
            if news := lead.news(self.distiller.teacher.classes.names):
                LOGGER.info(f"{colorstr('tskd-yolo:')} {news}.")
        return result


def weigh_classes(terms: Sequence[Term], lead: Lead, device: torch.device) -> None:
    """Has each class count in responses by how far the teacher is ahead in it."""
    weights = None if lead.classes is None else lead.classes.to(device)
    for term in terms:
        if isinstance(term, HeadTerm):
            term.weights = weights
