"""Keys and values in decoding: each prompt's are copied to its rows, with room for the tokens to come."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped
    """One layer's cache, whose steps write in place; what attention sees is a view, of no more than its window.

    The library's own grows by copying everything that is there, at each step and layer.
    """

    def __init__(self, filled: DynamicLayer, rows: Tensor, room: int) -> None:
        """Take over a filled layer, spread over rows, with room for so many tokens more."""
        super().__init__()
        self.window: int | None = getattr(filled, "sliding_window", None)
        self.is_sliding = self.window is not None
        self.seen: int = filled.get_seq_length()
        self.end: int = filled.keys.shape[2]  # of what is written; a window has dropped what lies before it
        self.room = room
        self.dtype, self.device, self.is_initialized = filled.dtype, filled.device, True
        self.keys, self.values = filled.keys, filled.values
        self.batch_select_indices(rows)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write new tokens and return what they may attend to. (B, heads, T, D) each"""
        new = key_states.shape[2]
        shown = self.get_mask_sizes(new)[0]
        self.keys[:, :, self.end : self.end + new] = key_states
        self.values[:, :, self.end : self.end + new] = value_states
        self.end, self.seen, self.room = self.end + new, self.seen + new, self.room - new
        return self.keys[:, :, self.end - shown : self.end], self.values[:, :, self.end - shown : self.end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many tokens attention sees, and the index of the first."""
        kept = self.seen if self.window is None else min(self.seen, self.window - 1)
        return kept + query_length, self.seen - kept

    def get_seq_length(self) -> int:
        """Return the tokens seen so far."""
        return self.seen

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep or repeat rows."""
        self.keys, self.values = (self._selected(states, indices) for states in (self.keys, self.values))

    def _selected(self, states: Tensor, indices: Tensor) -> Tensor:
        wider = states.new_empty(len(indices), states.shape[1], self.end + self.room, states.shape[3])
        wider[:, :, : self.end] = states[indices, :, : self.end]
        return wider


def spread(cache: Any, rows: Tensor, room: int) -> None:
    """Spread a prefilled cache over rows, with room for so many tokens more; other kinds of layers grow as they did.

    Args:
        cache: of transformers, filled with one row a prompt; changed in place.
        rows: which prompt each row of the decode continues. (B,)
        room: tokens to come.
    """
    for place, layer in enumerate(cache.layers):
        if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) and layer.get_seq_length():
            cache.layers[place] = RoomyLayer(layer, rows, room)
        else:
            layer.batch_select_indices(rows)
