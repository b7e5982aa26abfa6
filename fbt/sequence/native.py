"""Both directions of the loop with their steps in C++ (`fbt.native`)."""

import torch
from torch import Tensor

from fbt import native
from fbt.sequence.backward import Backward, ChunkGradients
from fbt.sequence.forward import Forward
from fbt.sequence.parts import Chunk, Loop

GROUP = 64  # sequences a thread takes through a chunk at once


class NativeLoop(Loop):
    """What the two directions share with loop.cpp."""

    def turn(self, x: Tensor) -> Tensor:
        """Transpose keys or values without a copy: loop.cpp reads both as [HB, J, D]."""
        return x.mT

    def numbers(self, first: int, stop: int, room: int, width: int) -> list[int]:
        """The struct `Sizes` of loop.cpp: `room` for keys in the buffers, `width` of a chunk's scores."""
        sizes = self.sizes
        inner, rows = self.w.b_1.shape[1], self.w.s.shape[2]
        shape = [
            self.T,
            self.B,
            self.H,
            self.D,
            self.L,
            inner,
            rows,
            room,
            sizes.past,
            sizes.span,
        ]
        options = [int(sizes.norm_memory), int(sizes.gelu)]
        return [
            *shape,
            *options,
            first,
            stop,
            self.oldest_key(first),
            width,
            self.group,
            self.threads,
        ]

    @property
    def group(self) -> int:
        """How many sequences a thread takes at once."""
        return min(GROUP, -(-self.B // torch.get_num_threads()))

    @property
    def threads(self) -> int:
        """How many threads there are."""
        return torch.get_num_threads()


class NativeForward(NativeLoop, Forward):
    """`Forward` with its steps in C++."""

    def steps(self, chunk: Chunk, first: int, stop: int) -> None:
        """Run the steps of a chunk, one after another."""
        outputs = [self.x, self.m, self.keys_t.mT, self.values]
        sizes = self.numbers(first, stop, self.values.shape[1], chunk.p.shape[2])
        native.run("forward", self.x.dtype, sizes, [*self.turned, *outputs, *chunk])


class NativeBackward(NativeLoop, Backward):
    """`Backward` with its steps in C++."""

    @property
    def threads(self) -> int:
        """As many threads as have a group; each adds to sums of its own."""
        return min(torch.get_num_threads(), -(-self.B // self.group))

    def steps(
        self,
        first: int,
        stop: int,
        chunk: Chunk,
        grads: ChunkGradients,
        d_top: Tensor,
    ) -> None:
        """The steps of a chunk in reverse, then what they owe to the keys and values before the chunk."""
        self.filled = {
            "w_2": self.buffer("w_2", *chunk.a.shape) if self.sizes.gelu else chunk.a,
            "w_1": self.buffer("w_1", *chunk.y.shape),
            "w_q": self.buffer("w_q", *chunk.y.shape),
        }
        tables = ("table", "s") if self.want & {"table", "s", "u"} else ()
        shares = {
            name: self.x.new_zeros(self.threads, *self.found[name].shape)
            for name in ("b_2", "b_1", "b_o", "b_q", *tables)
        }
        outputs = [self.x, self.m, self.keys, self.values_t.mT]
        into = [self.d_keys, self.d_values, self.d_x]
        sums = list(shares.values()) if tables else [*shares.values(), None, None]
        native.run(
            "backward",
            self.x.dtype,
            self.numbers(first, stop, self.keys.shape[1], chunk.p.shape[2]),
            [
                *self.w,
                *outputs,
                *chunk,
                *grads,
                *self.filled.values(),
                d_top,
                *into,
                *sums,
            ],
        )
        for name, share in shares.items():
            self.found[name] += share.sum(0)

    def queries(self, chunk: Chunk) -> Tensor:
        """Room for q + u, which the steps fill in on their way."""
        heads = self.H * self.B
        return self.buffer(
            "with_u", heads, chunk.q.numel() // heads // self.D, self.D
        )

    def biases(self, gradients: dict[str, Tensor]) -> None:
        """Nothing is left to add: the steps have."""

    def input(self, name: str, first: int, stop: int, chunk: Chunk) -> Tensor:
        """What a weight of each layer multiplied in a chunk: the steps have filled it in on their way."""
        return chunk.o if name == "w_o" else self.filled[name]
