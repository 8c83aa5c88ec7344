"""KV cache for decoding: a prompt's keys and values are copied to its rows, with space for new tokens."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped
    """Cache of one layer; steps write in place. Attention gets a view of it, limited to the layer's window.

    The library's cache copies all earlier keys and values at each step and layer.
    """

    def __init__(self, filled: DynamicLayer, rows: Tensor, room: int, dtype: torch.dtype | None) -> None:
        """Copy a filled layer to rows, with space for ``room`` more tokens, in a dtype or its own."""
        super().__init__()
        self.window: int | None = getattr(filled, "sliding_window", None)
        self.is_sliding = self.window is not None
        self.seen: int = filled.get_seq_length()
        self.end: int = filled.keys.shape[2]  # end of the written part; a window has dropped earlier tokens
        self.room = room
        self.dtype, self.device, self.is_initialized = dtype or filled.dtype, filled.device, True
        self.keys, self.values = filled.keys.to(self.dtype), filled.values.to(self.dtype)
        self.batch_select_indices(rows)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write new tokens and return the keys and values that they may attend to. (B, heads, T, D) each"""
        new = key_states.shape[2]
        shown = self.get_mask_sizes(new)[0]
        self.keys[:, :, self.end : self.end + new] = key_states
        self.values[:, :, self.end : self.end + new] = value_states
        self.end, self.seen, self.room = self.end + new, self.seen + new, self.room - new
        return self.keys[:, :, self.end - shown : self.end], self.values[:, :, self.end - shown : self.end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of tokens that attention gets, and the index of the first."""
        kept = self.seen if self.window is None else min(self.seen, self.window - 1)
        return kept + query_length, self.seen - kept

    def get_seq_length(self) -> int:
        """Return the number of tokens seen so far."""
        return self.seen

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep or repeat rows."""
        self.keys, self.values = (self._selected(states, indices) for states in (self.keys, self.values))

    def _selected(self, states: Tensor, indices: Tensor) -> Tensor:
        wider = states.new_empty(len(indices), states.shape[1], self.end + self.room, states.shape[3])
        wider[:, :, : self.end] = states[indices, :, : self.end]
        return wider


def spread(cache: Any, rows: Tensor, room: int, dtype: torch.dtype | None = None) -> None:
    """Copy a prefilled cache to rows, with space for ``room`` more tokens; other kinds of layers stay as they are.

    Args:
        cache: a cache of transformers, filled with one row per prompt; changed in place.
        rows: prompt of each row that is decoded. (B,)
        room: number of new tokens.
        dtype: of keys and values, if attention computes in another than their own.
    """
    for place, layer in enumerate(cache.layers):
        if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) and layer.get_seq_length():
            cache.layers[place] = RoomyLayer(layer, rows, room, dtype)
        else:
            layer.batch_select_indices(rows)
