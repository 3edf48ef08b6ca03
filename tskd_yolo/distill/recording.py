"""On CUDA, terms that are recorded once and replayed: most of their kernels run shorter than they take to be launched.

DRD, DED and CRD are about a thousand kernels each, forward and backward. For batches of one form these are the same
kernels on the same shapes. So the values of the terms and their gradients at the student's tensors are recorded as a
CUDA graph, and from then on a step copies its tensors in and launches all of it at once. What a step gives is the same.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from ultralytics.utils import LOGGER

from tskd_yolo.distill.features import StudentOutputs, TeacherOutputs
from tskd_yolo.distill.nonfinite import Guard, known
from tskd_yolo.distill.terms import Term
from tskd_yolo.losses.boxes import Boxes, padded
from tskd_yolo.losses.distributed import processes

WARM, FORMS, ROOM = 2, 4, 64
"""Steps of a form before it is recorded, forms that are recorded at most, and the least boxes that one has room for."""


def evaluate(
    terms: Sequence[Term], *, student: StudentOutputs, teacher: TeacherOutputs, boxes: Boxes
) -> dict[str, Tensor]:
    """The unweighted value of every term, by name."""
    return {term.name: term(student=student, teacher=teacher, boxes=boxes) for term in terms}


class Recorder:
    """:func:`evaluate` for CUDA devices: steps of a form that has come up before are replayed.

    A form is what decides the kernels: terms that are on, shapes and types of all tensors, with room for boxes up to a
    power of two. Terms that cannot be recorded (``recordable``), steps without gradient and runs of several processes,
    which exchange statistics in between, go the other way. After a failure everything does, and it is said.

    Args:
        capture: Records a function: its result, and what computes it anew in the same tensors.
        devices: Kinds of device that it is for.
    """

    def __init__(self, capture: Callable[..., Any] | None = None, devices: Sequence[str] = ("cuda",)) -> None:
        self.capture, self.devices = capture or on_cuda, devices
        self.failed = False
        self._forms: dict[Any, int] = {}
        self._recordings: dict[Any, Recording] = {}

    def forget(self) -> None:
        """Lets go of all recordings, and of the memory that they keep."""
        if self._recordings and torch.cuda.is_initialized():
            self._recordings = {}
            torch.cuda.empty_cache()
        self._forms, self._recordings = {}, {}

    def __call__(
        self, terms: Sequence[Term], *, student: StudentOutputs, teacher: TeacherOutputs, boxes: Boxes
    ) -> dict[str, Tensor]:
        """As :func:`evaluate`."""
        fixed = [term for term in terms if term.recordable] if self._at_work(boxes.xyxy.device) else []
        values = self._replayed(fixed, student, teacher, boxes) if fixed else {}
        others = [term for term in terms if term.name not in values]
        values = {**values, **evaluate(others, student=student, teacher=teacher, boxes=boxes)}
        return {term.name: values[term.name] for term in terms}

    def _at_work(self, device: torch.device) -> bool:
        return device.type in self.devices and not self.failed and processes() == 1 and torch.is_grad_enabled()

    def _replayed(
        self, terms: Sequence[Term], student: StudentOutputs, teacher: TeacherOutputs, boxes: Boxes
    ) -> dict[str, Tensor]:
        """Values of the terms; none where the form is new, or cannot be recorded."""
        inputs = gathered(terms, student, teacher, padded(boxes, ROOM))
        form = *(term.name for term in terms), *map(_form, pytree.tree_leaves(inputs))
        if form not in self._recordings:
            self._forms[form] = self._forms.get(form, 0) + 1
            if self._forms[form] <= WARM or len(self._recordings) == FORMS:
                return {}
        leaves, spec = pytree.tree_flatten(_standardised(inputs))
        if form not in self._recordings:
            try:
                self._recordings[form] = Recording(terms, leaves, spec, self.capture)
            except RuntimeError as error:  # out of memory is one, too
                self._give_up(error)
                return {}
        return self._recordings[form].replayed(terms, inputs, leaves)

    def _give_up(self, error: RuntimeError) -> None:
        self.failed = True
        self.forget()
        cause: BaseException = error
        while cause.__context__ is not None:  # what a recording says at its end is that something has failed in it
            cause = cause.__context__
        why = str(cause).splitlines()[0]
        LOGGER.warning(f"the terms of a step could not be recorded ({why}): they are launched one by one.")


class Inputs(NamedTuple):
    """Everything that the values of terms depend on, but for their parameters; the student's maps are adapted."""

    maps: dict[str, list[Any]]
    responses: dict[str, list[Any]]
    teacher: TeacherOutputs
    boxes: Boxes
    weights: list[Tensor | None]


def gathered(terms: Sequence[Term], student: StudentOutputs, teacher: TeacherOutputs, boxes: Boxes) -> Inputs:
    """What terms read, and nothing else."""
    sources = {term.source.name: term.source for term in terms if term.source is not None}
    return Inputs(
        {name: student.adapted(source) for name, source in sources.items()},
        {name: list(levels) for name, levels in student.responses.items()},
        teacher._replace(maps={name: list(teacher.maps[name]) for name in sources}),
        boxes,
        [getattr(term, "weights", None) for term in terms],
    )


def _form(leaf: Any) -> Any:
    """Of a map that is made when it is asked for: nothing, it is the same all through a run."""
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.requires_grad
    return None if callable(leaf) else leaf


def _standardised(inputs: Inputs) -> Inputs:
    """The same with every map of the teacher's made that waits to be asked for."""
    maps: Any = {name: [m() if callable(m) else m for m in maps] for name, maps in inputs.teacher.maps.items()}
    return inputs._replace(teacher=inputs.teacher._replace(maps=maps))


class Recording:
    """Values and gradients of terms for inputs of one form, in tensors that stay where they are.

    Args:
        terms: The terms.
        leaves, spec: Flattened :class:`Inputs`.
        capture: As in :class:`Recorder`.
    """

    def __init__(self, terms: Sequence[Term], leaves: Sequence[Any], spec: Any, capture: Callable[..., Any]) -> None:
        self._inputs = [_placed(x) if isinstance(x, Tensor) else x for x in leaves]
        self._fill(leaves)
        inputs = pytree.tree_unflatten(self._inputs, spec)
        device = inputs.boxes.xyxy.device.type
        with unguarded(terms), own_leaves(terms), torch.autocast(device, enabled=False):
            self._outputs, self._replay = capture(lambda: [_computed(t, i, inputs) for i, t in enumerate(terms)])

    def replayed(self, terms: Sequence[Term], inputs: Inputs, leaves: Sequence[Any]) -> dict[str, Tensor]:
        """The values of the terms for inputs of the same form, by name; they reach the student through the guards."""
        self._fill(leaves)
        self._replay()
        values = {}
        for term, (value, gradients) in zip(terms, self._outputs, strict=True):
            values[term.name] = known(value, gradients, term.guard.enter(_entered(term, inputs)))
        return values

    @torch.no_grad()
    def _fill(self, leaves: Sequence[Any]) -> None:
        for place, leaf in zip(self._inputs, leaves, strict=True):
            if isinstance(leaf, Tensor):
                place.copy_(leaf)


def _placed(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.preserve_format).detach().requires_grad_(x.requires_grad)


def _computed(term: Term, number: int, inputs: Inputs) -> tuple[Tensor, list[Tensor | None]]:
    """A term's value, and its gradients at the student's tensors that it reaches and at its parameters, in float32."""
    entered = _entered(term, inputs)
    own = {id(x): x if isinstance(x, nn.Parameter) else x.detach().float().requires_grad_() for x in entered}
    maps, responses = pytree.tree_map(lambda x: own.get(id(x), x), (inputs.maps, inputs.responses))
    with _weighed(term, inputs.weights[number]):
        value = term(student=StudentOutputs({}, responses, adapted=maps), **_others(inputs))
    if not value.requires_grad:  # it does not reach the student, which the check after the first epoch tells
        return value, [None] * len(own)
    return value.detach(), list(torch.autograd.grad(value, list(own.values()), allow_unused=True))


def _entered(term: Term, inputs: Inputs) -> list[Tensor]:
    """What a term reads that carries gradient: tensors of the student, and parameters of its own."""
    student = StudentOutputs({}, inputs.responses, adapted=inputs.maps)
    parts = term.parts(student=student, **_others(inputs))
    return [x for part in parts for x in (*part.tensors, *part.parameters) if x.requires_grad]


def _others(inputs: Inputs) -> dict[str, Any]:
    """The arguments of a term besides the student."""

    def already(features: Any) -> Any:
        return features if isinstance(features, Tensor) else lambda: features

    maps = {name: [already(features) for features in maps] for name, maps in inputs.teacher.maps.items()}
    return {"teacher": inputs.teacher._replace(maps=maps), "boxes": inputs.boxes}


@contextmanager
def _weighed(term: Any, weights: Tensor | None) -> Iterator[None]:
    if weights is None:
        yield
        return
    before, term.weights = term.weights, weights
    try:
        yield
    finally:
        term.weights = before


@contextmanager
def unguarded(terms: Sequence[Term]) -> Iterator[None]:
    """Inside, other guards stand in: what is recorded is guarded when it is replayed."""
    before = [term.guard for term in terms]
    for term in terms:
        term.guard = Guard()
        term.guard.counting = False
    try:
        yield
    finally:
        for term, guard in zip(terms, before, strict=True):
            term.guard = guard


@contextmanager
def own_leaves(terms: Sequence[Term]) -> Iterator[None]:
    """Inside, the parameters of terms are others in the same memory.

    What accumulates the gradient of a parameter outlives a step, with its stream, for which nothing that is being
    recorded on another one may wait.
    """
    modules = [module for term in terms for module in term.module.modules()]
    places = [(module, *named) for module in modules for named in module.named_parameters(recurse=False)]
    for module, name, parameter in places:
        setattr(module, name, nn.Parameter(parameter.detach(), parameter.requires_grad))
    try:
        yield
    finally:
        for module, name, parameter in places:
            setattr(module, name, parameter)


def on_cuda(function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """A function's result as a CUDA graph leaves it, and what computes it anew there.

    Raises:
        RuntimeError: If the function waits for the device, or there is not enough memory.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    generator = torch.cuda.default_generators[stream.device_index]
    random = generator.graphsafe_get_state()
    generator.graphsafe_set_state(torch.Generator(stream.device))  # one that fails is left unusable
    try:
        # Threads that load images may go on with what recording forbids.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = function()
    finally:  # after a failure torch leaves both as they are
        torch.cuda.set_stream(stream)
        generator.graphsafe_set_state(random)
    return outputs, graph.replay
