"""Which device trains a model if the caller names none: the faster one.

The loop is a chain of small operations. A GPU needs about the same time for each of
them, however few numbers it computes; the time of a CPU grows with the numbers. So a
GPU is faster for wide models and many sequences, and the CPU for the rest.
"""

from typing import NamedTuple

import torch

from fbt import engines
from fbt.config import Backend, Config
from fbt.sequence.proof import TIMED_BATCH
from fbt.sequence.triton_engine import TritonEngine
from fbt.training.recipe import Recipe

# From fbt/measurements/gpu.json: the seconds that "sequence" takes to train, per step
# of the loop and layer, without a graph. They hardly depend on the other sizes. There
# is no record yet of graphs as `fbt.sequence.graphs` makes them.
ON_GPU = 1.1e-3
# From fbt/measurements/speed.json, size M: the seconds of one thread per weight and
# token. Two threads took 0.53 and 0.81 times as long; more were not measured.
ON_CPU = {"native": 1.38e-10, "sequence": 2.13e-10}


class Placement(NamedTuple):
    """A kind of device, and why it was chosen."""

    device: str
    reason: str


def faster_device(config: Config, recipe: Recipe, backend: Backend) -> Placement:
    """Return where a model trains faster, on a machine with a CUDA device.

    A parallel model takes all steps at once and belongs on the GPU. With feedback, an
    estimate for the GPU is compared with one for the CPU. The plain loops have no
    record on a GPU; they are made of the same small operations as "sequence", and
    judged like it.

    Args:
        config: of the model.
        recipe: of the run.
        backend: "auto" or a name; that of its checkpoint if a run is resumed.
    """
    if backend in ("native", "triton"):
        device = "cpu" if backend == "native" else "cuda"
        return Placement(device, f'where backend="{backend}" computes')
    if config.variant == "parallel":
        return Placement("cuda", "which takes all steps of a parallel model at once")
    cpu = seconds_on_cpu(config, recipe, backend)
    gpu = seconds_on_gpu(config, recipe, backend)
    slower, faster = ("CPU", "cuda") if gpu < cpu else ("GPU", "cpu")
    ratio = max(cpu, gpu) / min(cpu, gpu)
    return Placement(
        faster,
        f"since by our records a step takes about {ratio:.1f} times as long on the "
        f"{slower}",
    )


def seconds_on_cpu(config: Config, recipe: Recipe, backend: Backend) -> float:
    """Estimate the seconds of a training step on all threads of the CPU."""
    x = torch.empty(0, 0, config.d_model, dtype=torch.float32, device="cpu")
    has_choice = config.variant == "shared-kv" and backend == "auto"
    engine = engines.first_for(x).engine if has_choice else None
    d = config.d_model
    weights = 2 * d * (config.n_layers * (d + config.d_ff) + d)
    tokens = recipe.batch_size * recipe.seq_len
    seconds = ON_CPU[engine or "sequence"] * weights * tokens
    return seconds / torch.get_num_threads()


def seconds_on_gpu(config: Config, recipe: Recipe, backend: Backend) -> float:
    """Estimate the seconds of a training step on the current CUDA device.

    Where the kernels of "triton" were checked, they and a graph of "sequence" were
    also timed, and these times replace the record of another card.
    """
    x = torch.empty(0, 0, config.d_model, dtype=torch.float32, device="cuda")
    kernel, graph = TritonEngine.seconds(x) or (torch.inf, torch.inf)
    seconds = ON_GPU
    if config.variant == "shared-kv" and backend in ("auto", "sequence"):
        if backend == "auto" and kernel < graph:
            # More sequences cost nothing while the card has room: this is a bound.
            seconds = kernel * max(1.0, recipe.batch_size / TIMED_BATCH)
        elif graph < torch.inf and not config.dropout:  # there is no graph with it
            seconds = graph
    return seconds * recipe.seq_len * config.n_layers
