"""Which of a teacher's classes is which of the student's, and a teacher's head brought to the student's classes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn
from ultralytics.nn.modules.head import RTDETRDecoder

from tskd_yolo.config import ConfigError
from tskd_yolo.distill.features import towers

UNHEARD = -30.0
"""Logit of a class that the teacher does not know."""

CAP = 0.99
"""Up to here probabilities of classes that become one are added; what is beyond counts next to nothing."""


class Classes(NamedTuple):
    """A teacher's classes as the student has them.

    ``members`` are, for each class of the student, the teacher's outputs that mean it; ``mapped`` are the names that a
    map has brought together, ``lost`` the teacher's that are left out; ``unasked`` are the student's that are not
    learned at all.
    """

    members: list[list[int]]
    names: list[str]
    mapped: list[tuple[str, str]]
    lost: list[str]
    unasked: Sequence[str] = ()

    @property
    def known(self) -> list[int]:
        """Of the student's classes those that the teacher knows."""
        return [place for place, outputs in enumerate(self.members) if outputs]

    @property
    def alike(self) -> bool:
        """Whether the teacher's outputs are the student's, in their order."""
        return not self.lost and self.members == [[place] for place in range(len(self.members))]

    def told(self, alone: bool = True) -> list[str]:
        """What is not as one would expect it, a line each.

        Args:
            alone: Whether there is no other teacher, who may know the rest.
        """
        if self.alike and not self.mapped:
            return []
        if not self.lost and not self.mapped and all(len(outputs) == 1 for outputs in self.members):
            return ["the teacher's are in another order; they are matched by name"]
        unknown = [name for name, outputs in zip(self.names, self.members) if not outputs and name not in self.unasked]
        asked = len(self.names) - len(self.unasked)
        lines = [f"the teacher knows {len(self.known)} of the {asked} that are to be learned"]
        if self.mapped:
            lines.append("mapped: " + ", ".join(f"{theirs} -> {ours}" for theirs, ours in self.mapped))
        if unknown:
            lines.append(f"{'learned from the labels alone' if alone else 'not known to it'}: {', '.join(unknown)}")
        if self.unasked:
            lines.append(f"left out by classes=, and not taught: {', '.join(self.unasked)}")
        if self.lost:
            lines.append(f"left out of the teacher's, {len(self.lost)}: {short(dict(enumerate(self.lost)))}")
        return lines


def folded(name: Any) -> str:
    """A class name without what does not tell classes apart: case, and whether a blank, a dash or _ stands in it."""
    return re.sub(r"[\s_-]+", " ", str(name)).strip().casefold()


def match(
    teacher: Mapping[int, str],
    names: Mapping[int, str],
    mapping: Mapping[str, str | None] | None = None,
    single: bool = False,
) -> Classes:
    """Brings classes together, by a map where it names them and by name otherwise: the exact spelling first.

    Args:
        teacher: The teacher's classes.
        names: The student's.
        mapping: From the teacher's names to the student's, or to None for those that are left out.
        single: Whether all are one class.
    """
    ours = [str(name) for _, name in sorted(names.items())]
    members: list[list[int]] = [[] for _ in ours]
    left, mapped, lost = dict(teacher), [], []
    by_map = {folded(key): value for key, value in (mapping or {}).items()}
    for output, name in teacher.items():
        if folded(name) in by_map:
            del left[output]
            if (target := by_map[folded(name)]) is None:
                lost.append(str(name))
                continue
            place = 0 if single else _place(str(target), ours)
            members[place].append(output)
            mapped.append((str(name), ours[place]))
    if single:
        return Classes([[*members[0], *left]], ours, mapped, lost)
    for place, name in enumerate(ours):
        same = [output for output, other in left.items() if other == name]
        same = same or [output for output, other in left.items() if folded(other) == folded(name)]
        if same:
            members[place].append(same[0])
            del left[same[0]]
    for output, name in left.items():  # what is spelled as one that is taken is the same class
        alike = [place for place, other in enumerate(ours) if folded(other) == folded(name)]
        if alike:
            members[alike[0]].append(output)
        else:
            lost.append(str(name))
    return Classes(members, ours, mapped, lost)


def only(matched: Classes, kept: int | Sequence[int] | None) -> Classes:
    """The same without the student's classes that Ultralytics' ``classes=`` leaves out.

    Their labels are not read, so the detection loss calls them background; what the teacher says would contradict it.
    """
    if kept is None or len(matched.members) == 1:  # with single_cls all are one
        return matched
    asked = _asked(kept)
    members = [outputs if place in asked else [] for place, outputs in enumerate(matched.members)]
    unasked = [name for place, name in enumerate(matched.names) if place not in asked]
    return matched._replace(members=members, unasked=unasked)


def only_of_one(
    matched: Classes, teacher: Mapping[int, str], names: Mapping[int, str], kept: Any, mapping: Any = None
) -> Classes:
    """With ``single_cls``, where all are one, the same as :func:`only`: Ultralytics leaves classes out before it makes
    the others one.

    Args:
        matched: The one class.
        teacher: The teacher's classes.
        names: Those of the data, before they were made one.
        kept: ``classes=``.
        mapping: As of :func:`match`.
    """
    if kept is None:
        return matched
    members = match(teacher, names, mapping).members
    unasked = {output for place, outputs in enumerate(members) if place not in _asked(kept) for output in outputs}
    return matched._replace(members=[[output for output in matched.members[0] if output not in unasked]])


def _asked(kept: int | Sequence[int]) -> set[int]:
    return {kept} if isinstance(kept, int) else {*kept}


def wrong_asked(kept: Any, names: Mapping[int, str]) -> list[str]:
    """What is wrong with Ultralytics' ``classes=``, beside the classes of the data."""
    if kept is None:
        return []
    asked = [kept] if isinstance(kept, int) else kept
    if not isinstance(asked, (list, tuple)) or not asked or any(type(number) is not int for number in asked):
        return [f"classes: must be numbers of classes, i.e. classes=[0,2], got {kept!r}; drop it to train on all."]
    beyond = [number for number in asked if number not in names]
    if not beyond:
        return []
    return [f"classes: the data has none with the number {', '.join(map(str, beyond))}; its are 0 to {len(names) - 1}."]


def of_all(classes: Iterable[Mapping[int, str]]) -> dict[int, str]:
    """The classes of several teachers, each once."""
    return dict(enumerate({folded(name): str(name) for names in classes for name in names.values()}.values()))


def _place(name: str, ours: Sequence[str]) -> int:
    """Where a class is among the student's: of this very name, or else of one that folds alike."""
    return next(i for same in (str, folded) for i, other in enumerate(ours) if same(other) == same(name))


# The map --------------------------------------------------------------------------------------------------------------


def read(given: Any) -> Mapping[str, str | None] | None:
    """What ``classes_map=`` says, from a file or as it is.

    Raises:
        ConfigError: If the file is missing, or maps no names to names.
    """
    if not given:
        return None
    content, file = given, ""
    if not isinstance(given, Mapping):
        file = f" {given}"
        if not Path(given).is_file():
            raise ConfigError([f"classes_map: {given} was not found; give a YAML file with lines such as 'pit: hole'."])
        try:
            content = yaml.safe_load(Path(given).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            content = None
    if not isinstance(content, Mapping) or any(isinstance(value, (Mapping, list)) for value in content.values()):
        raise ConfigError(
            [f"classes_map:{file} maps no names to names; write lines such as 'pit: hole', or 'pit: null' to drop one."]
        )
    return {str(key): None if value is None else str(value) for key, value in content.items()}


def wrong(mapping: Mapping[str, str | None] | None, teacher: Mapping[int, str], names: Mapping[int, str]) -> list[str]:
    """What of a map names no class, one sentence each."""
    problems = []
    for key, value in (mapping or {}).items():
        sides = [("the teacher", key, teacher)] + ([("the data", value, names)] if value is not None else [])
        problems += [_unknown(who, name, known) for who, name, known in sides if not _is_in(name, known)]
    return problems


def _is_in(name: str | None, known: Mapping[int, str]) -> bool:
    return folded(name) in {folded(other) for other in known.values()}


def _unknown(who: str, name: str | None, known: Mapping[int, str]) -> str:
    table = {folded(other): str(other) for other in known.values()}
    near = difflib.get_close_matches(folded(name), table, n=1, cutoff=0.4)
    hint = f"did you mean '{table[near[0]]}'?" if near else f"it has {short(known)}."
    return f"classes_map: {who} has no class '{name}'; {hint}"


def short(names: Mapping[int, str], most: int = 6) -> str:
    """The first of some names."""
    first = [str(n) for n in list(names.values())[:most]]
    return ", ".join([*first, "..."] if len(names) > most else first)


# The head -------------------------------------------------------------------------------------------------------------


class Union(nn.Module):
    """Logits of single classes to those of classes that have several members: probabilities are added.

    Beyond :data:`CAP` a sum rises a hundred times as slowly and stays below 1, so that there is a gradient everywhere.

    Args:
        count: Number of classes; the first ``count`` logits are their first members, which others follow.
        owner: The class of each of those others.
        dim: Of the logits.
    """

    owner: Tensor
    several: Tensor

    def __init__(self, count: int, owner: Sequence[int], dim: int) -> None:
        super().__init__()
        self.count, self.dim = count, dim
        self.slope = (1 - CAP) / (1 + len(owner)) / 2
        self.register_buffer("owner", torch.tensor(owner))
        self.register_buffer("several", torch.zeros(count, dtype=torch.bool).index_fill(0, torch.tensor(owner), True))

    def forward(self, logits: Tensor) -> Tensor:
        """``(N, members, H, W)`` or ``(N, Q, members)`` -> the same with ``count`` in the place of members."""
        logits = logits.movedim(self.dim, -1)
        own, more = logits[..., : self.count], logits[..., self.count :].float().sigmoid()
        total = own.float().sigmoid().index_add(-1, self.owner, more)
        total = torch.where(total < CAP, total, CAP + (total - CAP) * self.slope).clamp(min=1e-12)
        return torch.where(self.several, torch.logit(total).to(own.dtype), own).movedim(-1, self.dim)


def bring(model: Any, classes: Classes, names: Mapping[int, str]) -> None:
    """Gives a teacher's head the student's classes, in place, so that it validates as one that was trained on them.

    The last layer of each class branch gets one row per class of the student: the teacher's own, or one that is never
    heard where it does not know the class. Nothing is changed where it knows none of them.
    """
    if classes.alike or not classes.known:
        return
    head = model.model[-1]
    if isinstance(head, RTDETRDecoder):
        for place, layer in enumerate(head.dec_score_head):
            head.dec_score_head[place] = nn.Sequential(*_rebuilt(layer, classes.members, -1))
    else:
        for _, tower in towers(head).values():
            for layers in tower:
                layers.extend(_rebuilt(layers[-1], classes.members, 1)[1:])
        head.no += len(names) - head.nc
    head.nc = model.nc = len(names)
    model.names = dict(names)


def _rebuilt(layer: Any, members: Sequence[Sequence[int]], dim: int) -> list[nn.Module]:
    """The layer with the rows of the first members, and those of others after them, which a :class:`Union` adds."""
    rows = [outputs[0] if outputs else -1 for outputs in members]
    owner = [place for place, outputs in enumerate(members) for _ in outputs[1:]]
    rows += [output for outputs in members for output in outputs[1:]]
    unheard = torch.tensor([row < 0 for row in rows])
    layer.weight.data, layer.bias.data = layer.weight.data[rows], layer.bias.data[rows]
    layer.weight.data[unheard], layer.bias.data[unheard] = 0, UNHEARD
    if isinstance(layer, nn.Conv2d):
        layer.out_channels = len(rows)
    else:
        layer.out_features = len(rows)
    return [layer, Union(len(members), owner, dim)] if owner else [layer]
