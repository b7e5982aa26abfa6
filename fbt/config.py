"""Sizes and options of a model, in one frozen dataclass."""

from dataclasses import KW_ONLY, asdict, dataclass, replace
from typing import Any, Literal, get_args

from fbt._checks import check_bool, check_choice, check_int, check_real, shorten
from fbt._text import dataclass_from

Variant = Literal["parallel", "feedback", "shared-kv"]
Activation = Literal["relu", "gelu"]
Memory = Literal["learned", "uniform", "top", "embedding"]
Relative = Literal["per-layer", "shared"]
# How a body is computed; not every variant has all of them.
Backend = Literal["auto", "reference", "stack", "sequence", "native", "triton"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
MEMORIES: tuple[Memory, ...] = get_args(Memory)
RELATIVES: tuple[Relative, ...] = get_args(Relative)
LARGEST_SIZE = 2**28  # the bytes of a matrix must fit an int64


@dataclass(frozen=True)
class Config:
    """Sizes and options of a language model.

    Args:
        vocab_size: number of tokens, V.
        variant: "parallel" (a causal transformer), "feedback" (weighted memory, keys
            and values per layer; paper section 3) or "shared-kv" (weighted memory,
            one key and one value for all layers).
        d_model: width d of every representation.
        n_heads: heads H; must divide `d_model`.
        n_layers: layers L.
        d_ff: inner width F of the feed-forward block. None means 4 `d_model`, and is
            stored as that number. The method `replace` keeps the factor when it
            changes `d_model`.
        span: S, the number of earlier steps a query may see, and the capacity of a
            cache.
        dropout: probability of dropping an entry of the embeddings, attention weights
            and layer outputs.
        activation: "relu" or "gelu", inside the feed-forward block.
        memory_norm: normalise the memory vector before it is projected to a key and a
            value.
        memory: weights of layers 0..L in the memory vector: "learned" (softmax of
            trained logits), "uniform", "top" (the last layer only) or "embedding"
            (layer 0 only: no feedback).
        relative: "per-layer" gives each layer its own relative terms E, s, u;
            "shared" gives all layers the same.
        final_norm: normalise the output of the last layer before the head. Models
            that carry a state learn it sooner without (chapter 7 of the book).

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.
    """

    vocab_size: int
    _: KW_ONLY
    variant: Variant = "shared-kv"
    d_model: int = 128
    n_heads: int = 4
    n_layers: int = 4
    d_ff: int = None  # type: ignore[assignment]  # an int once __post_init__ has run
    span: int = 256
    dropout: float = 0.0
    activation: Activation = "relu"
    memory_norm: bool = True
    memory: Memory = "learned"
    relative: Relative = "per-layer"
    final_norm: bool = True

    def __post_init__(self) -> None:
        """Check every field and fill in the default of `d_ff`."""
        for name in ("vocab_size", "d_model", "n_heads", "n_layers", "span"):
            check_int(name, getattr(self, name), low=1, high=LARGEST_SIZE)
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", 4 * self.d_model)
        check_int("d_ff", self.d_ff, low=1, high=LARGEST_SIZE)
        for name in ("vocab_size", "d_model", "n_heads", "n_layers", "span", "d_ff"):
            # An integer of NumPy is accepted, but JSON has only ints.
            object.__setattr__(self, name, int(getattr(self, name)))
        check_choice("variant", self.variant, VARIANTS)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("memory", self.memory, MEMORIES)
        check_choice("relative", self.relative, RELATIVES)
        check_bool("memory_norm", self.memory_norm)
        check_bool("final_norm", self.final_norm)
        check_real("dropout", self.dropout, low=0.0, high=1.0, open_high=True)
        object.__setattr__(self, "dropout", float(self.dropout))  # for JSON
        if self.d_model % self.n_heads:
            raise ValueError(
                "n_heads must divide d_model, got "
                f"n_heads={shorten(self.n_heads)} and d_model={shorten(self.d_model)}"
            )

    def replace(self, **changes: Any) -> "Config":
        """Return a config with some fields changed.

        If `d_ff` is four times `d_model`, the default, it remains so unless it is
        given. `dataclasses.replace` would keep its old value.

        Args:
            **changes: new values by field.

        Raises:
            TypeError, ValueError: if a field is unknown, has the wrong type or is out
                of range.
        """
        if self.d_ff == 4 * self.d_model:
            changes = {"d_ff": None} | changes
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields by name, as a file of weights has them in JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """Return the config of fields by name; missing ones have their defaults.

        Raises:
            TypeError, ValueError: if a field is unknown, has the wrong type or is out
                of range.
        """
        return dataclass_from("config", cls, values)

    @property
    def d_head(self) -> int:
        """The width D = d / H of one head."""
        return self.d_model // self.n_heads
