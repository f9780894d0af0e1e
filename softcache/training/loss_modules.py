"""The modules of those losses on outputs that have parameters, which are trained beside the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from softcache.losses._module import LossModule
from softcache.losses._terms import Term


class LossModules(nn.Module):
    """``modules``: by the number of their term in ``terms``."""

    def __init__(self, terms: Sequence[Term], modules: Mapping[int, LossModule]):
        super().__init__()
        self._modules_of = dict(modules)
        self._specs = {number: str(terms[number]) for number in modules}
        self.by_term = nn.ModuleDict({str(number): module for number, module in modules.items()})

    def of(self, number: int) -> LossModule | None:
        """That of a term; None where its loss has no parameters."""
        return self._modules_of.get(number)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch (the first is 0) of a stage of ``epochs``."""
        for module in self._modules_of.values():
            module.begin_epoch(epoch, epochs)

    def shown(self) -> dict[tuple[str, str], torch.Tensor]:
        """What they show of the last step: (spec of the term, name) → a scalar on the device."""
        return {
            (self._specs[number], name): value
            for number, module in self._modules_of.items()
            for name, value in module.shown.items()
        }


def build_loss_modules(terms: Sequence[Term], widths: Sequence[int], *, seed: int) -> LossModules | None:
    """None where no loss has parameters. ``widths``: of each term's output, how many numbers a vector has.

    Errors: ``UsageError`` where a loss of the user's own gives no ``LossModule``.
    """
    modules = {}
    for number, (term, width) in enumerate(zip(terms, widths, strict=True)):
        module = term.build(classes=width, seed=seed)
        if module is not None:
            modules[number] = module
    return LossModules(terms, modules) if modules else None
