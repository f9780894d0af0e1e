"""Whether a network can compute on what a dataset gives: tried on a few samples, before anything that takes long."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from softcache.device import reproducible
from softcache.errors import ModelError, SoftcacheError
from softcache.fields import Inputs
from softcache.models._network import Network

NAMES = 4  # parameters of a network's forward that a message names
MOST = 200  # characters of what it raised


def refuse_other_inputs(
    network: Network, inputs: Inputs, given: Mapping[str, object], dataset: str, options: str, *, tf32: bool = False
) -> None:
    """Runs the network on ``inputs``, some samples on its own device, in evaluation mode.

    A network of text that is given pictures, or one of tables with another number of columns, would raise whatever
    torch raises in the middle of it. ``given``: the inputs of ``dataset``, for the message; ``options``: what other
    data is named with; ``tf32``: as the network is going to be run.

    Errors: ``ModelError`` with what the network takes and what the dataset gives.
    """
    modes = [(module, module.training) for module in network.modules()]
    try:
        with reproducible(tf32=tf32), torch.no_grad(), torch.random.fork_rng(devices=[]):  # which leaves no trace
            network.eval().outputs(inputs, [])
    except (SoftcacheError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # code of anybody's own may raise anything
        names = network.takes
        takes = ", ".join(names[:NAMES]) + (", …" if len(names) > NAMES else "")
        what = "; ".join(f"{name} {field}" for name, field in given.items())
        why = " ".join(str(error).split())
        why = why if len(why) <= MOST else f"{why[:MOST]}…"
        raise ModelError(
            f"{network.spec} can't compute on {dataset}: it takes {takes or 'nothing'}, and {dataset} gives {what} "
            f"({type(error).__name__}: {why}): name the data that it is for with {options}"
        ) from error
    finally:
        for module, training in modes:
            module.training = training
