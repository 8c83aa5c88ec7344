"""Several roles over one base in memory: each role is an adapter, some have a scalar head.

``policy`` is trained, ``reference`` is a frozen copy of the adapter the run started from, ``reward_model`` and
``critic`` have their own adapters and heads; ``base`` is the model without adapters.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from alignflow.models import adapters
from alignflow.models.adapters import AdapterShape
from alignflow.models.attention import at_rows, attend_over_trees, shares_prefixes, tree_states
from alignflow.models.heads import last_response_index, scalar_head
from alignflow.models.linear import compute_in, frozen_linear
from alignflow.models.load import LoadedBase, check_length, decoder_of, learned_positions, position_ids, softcap_of
from alignflow.ops import token_logprobs
from alignflow.prefix_tree import prefix_tree
from alignflow.types import Sequences

BASE = "base"


class SharedBase:
    """One base model with adapters and heads of all roles; implements ``alignflow.types.Models``."""

    def __init__(self, base: LoadedBase, shape: AdapterShape) -> None:
        """Take the base; roles are added one by one."""
        self.base = base
        self.shape = shape
        self.heads: dict[str, nn.Linear] = {}
        self._longest = learned_positions(base.model)
        attend_over_trees(base.model, base.compute)
        self.shares_prefixes = shares_prefixes(base.model, decoder_of(base.model))
        """Whether rows are computed as a prefix tree; otherwise they are padded."""
        self._peft: Any = None
        self._layers: list[Any] = []
        self._trained: set[str] = set()
        self._active = BASE

    # -- roles -------------------------------------------------------------------------------------------------

    def add(
        self,
        role: str,
        *,
        start: Path | None = None,
        trained: bool = False,
        seed: int = 0,
        shape: AdapterShape | None = None,
    ) -> None:
        """Add a role: a new adapter (without effect until it is trained), or one loaded from a folder.

        If the folder contains a scalar head, the role gets it.

        Args:
            role: its name.
            start: adapter folder to start from.
            trained: whether its adapter and head receive gradients.
            seed: seed of a new adapter; the state of torch's generators does not change.
            shape: shape of its adapter; None: the shape that the roles share.

        Raises:
            ValueError: the folder's adapter has another shape, or the shape adapts the output embedding.
        """
        self._peft = adapters.attach(self._peft or self.base.model, role, shape or self.shape, seed=seed)
        self._layers = adapters.lora_layers(self._peft)
        if start is not None:
            head = adapters.load_weights(self._peft, role, start)
            if head is not None:
                self.add_head(role, weight=head.weight, bias=head.bias)
        for parameter in self.parameters(role, heads=False):
            parameter.data = parameter.data.to(self.base.dtype)
        if self.base.compute != self.base.dtype:
            compute_in(self._peft, self.base.compute)
        if trained:
            self._trained.add(role)
        self._switch(self._active)
        if role in self.heads:
            self.heads[role].requires_grad_(trained)

    def add_head(self, role: str, *, weight: Tensor | None = None, bias: float | None = None, seed: int = 0) -> None:
        """Give a role a scalar head: the given weight (1, H) or a small random one, and a bias if one is given."""
        head = scalar_head(self.base.model.config.hidden_size, seed=seed, device=self.base.device, bias=bias)
        if weight is not None:
            with torch.no_grad():
                head.weight.copy_(weight)
        self.heads[role] = head.requires_grad_(role in self._trained)

    def standardize_head(self, role: str, mean: float, std: float) -> None:
        """Replace a role's head by one that returns (score − mean) / std: a critic predicts normalised scores."""
        self.add_head(role, weight=self.heads[role].weight.detach() / std, bias=-mean / std)

    def parameters(self, role: str, *, heads: bool = True) -> list[Parameter]:
        """Return the parameters of a role's adapter and head."""
        own = [p for name, p in self._peft.named_parameters() if adapters.belongs(name, role)]
        return own + (list(self.heads[role].parameters()) if heads and role in self.heads else [])

    @contextmanager
    def role(self, name: str) -> Iterator[Any]:
        """Make the model compute as a role; restores the previous role, also after an exception."""
        previous = self._active
        try:
            self._switch(name)
            yield self._peft or self.base.model
        finally:
            self._switch(previous)

    @contextmanager
    def merged(self, name: str) -> Iterator[Any]:
        """Make the model compute as a role with plain layers W = dequantised(W₀) + (α/r)·B·A, for sampling.

        Faster than 4-bit layers with adapters, but inside the context each weight takes 2 bytes, or 4 where products
        are computed in float32. W is rounded to the base's dtype, so log-probs for training always come from the
        adapted layers. No gradient flows through plain layers. On a CPU the output embedding gets a packed copy, too.
        """
        replaced: list[tuple[Any, str, Any]] = []
        head = self.base.model.get_output_embeddings()
        with self.role(name), torch.no_grad():
            try:
                self.base.model.set_output_embeddings(frozen_linear(head.weight, head.bias, self.base.compute))
                for path, module in list(self.base.model.named_modules()):
                    dense = adapters.dense(module, name, self.base.compute) if module in self._layers else None
                    if dense is not None:
                        parent, _, child = path.rpartition(".")
                        owner = self.base.model.get_submodule(parent)
                        replaced.append((owner, child, module))
                        setattr(owner, child, dense)
                yield self.base.model
            finally:
                self.base.model.set_output_embeddings(head)
                for owner, child, module in replaced:
                    setattr(owner, child, module)

    def _switch(self, name: str) -> None:
        if name != BASE and (self._peft is None or name not in self._peft.peft_config):
            raise ValueError(f"no role {name!r}; add it first")
        if name == BASE:
            for layer in self._layers:
                layer.enable_adapters(False)
        else:
            for layer in self._layers:
                layer.enable_adapters(True)
                layer.set_adapter(name, inference_mode=name not in self._trained)
        self._active = name
        # PEFT freezes inactive adapters, which would drop their gradients in a later backward pass
        for role in self._trained:
            for parameter in self.parameters(role, heads=False):
                parameter.requires_grad_(True)

    # -- forwards ----------------------------------------------------------------------------------------------

    def hidden(self, role: str, batch: Sequences) -> Tensor:
        """Return the last hidden states of a role. (B, S, H)

        The states of real tokens do not depend on the side or the content of padding.

        Raises:
            TooLong: a row does not fit the model's learned positions.
        """
        batch = batch.to(self.base.device)
        positions = position_ids(batch.attention_mask)
        if self._longest is not None:  # computing the length waits for the device
            check_length(int(positions.max()) + 1, self._longest)
        decoder = decoder_of(self.base.model)
        with self.role(role):
            if self.shares_prefixes:
                tree = prefix_tree(batch.token_rows(), self.base.device)
                return at_rows(tree_states(decoder, tree), tree.rows.gather(1, positions))
            states: Tensor = decoder(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask.long(),
                position_ids=positions,
                use_cache=False,
            ).last_hidden_state
        return states

    def logprobs(
        self, role: str, batch: Sequences, temperature: float = 1.0, entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return a role's log-probs of response tokens, and its entropies; zero elsewhere.

        Column t is that of token t+1, as in ``response_mask[:, 1:]``.

        Returns:
            Log-probs and (if ``entropy``) entropies, float32 nats. (B, S-1) each
        """
        batch = batch.to(self.base.device)
        mask = batch.response_mask[:, 1:]
        states = self.hidden(role, batch)[:, :-1][mask]
        head = self.base.model.get_output_embeddings()
        logprobs, entropies = token_logprobs(
            states,
            head.weight,
            batch.input_ids[:, 1:][mask],
            bias=head.bias,
            temperature=temperature,
            softcap=softcap_of(self.base.model),
            entropy=entropy,
            compute=self.base.compute,
        )
        zeros = torch.zeros(mask.shape, device=mask.device)
        return zeros.masked_scatter(mask, logprobs), zeros.masked_scatter(mask, entropies) if entropy else None

    def scores(self, role: str, batch: Sequences) -> Tensor:
        """Return the role's scalar at the last response token, not normalised. (B,) float32"""
        scores: Tensor = self.heads[role](self.last_states(role, batch))[:, 0]
        return scores

    def last_states(self, role: str, batch: Sequences) -> Tensor:
        """Return the hidden state at the last response token: the input of the role's head. (B, H) float32"""
        batch = batch.to(self.base.device)
        last = last_response_index(batch.response_mask)
        return self.hidden(role, batch)[torch.arange(len(last), device=last.device), last].float()

    def values(self, role: str, batch: Sequences) -> Tensor:
        """Return the role's scalar before each response token; zero elsewhere. (B, S-1) float32"""
        batch = batch.to(self.base.device)
        mask = batch.response_mask[:, 1:]
        states = self.hidden(role, batch)[:, :-1][mask]
        values: Tensor = self.heads[role](states.float())[:, 0]
        return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, values)

    # -- files -------------------------------------------------------------------------------------------------

    def save(self, role: str, folder: Path) -> None:
        """Write a role as a plain PEFT folder with the tokenizer; a role with a head as a classifier.

        ``add`` restores a head's bias; plain classifiers have no bias and score without it.
        """
        self.save_adapter(role, folder)
        self.base.tokenizer.save_pretrained(folder)

    def save_adapter(self, role: str, folder: Path) -> None:
        """Write a role as ``save`` does, without the tokenizer."""
        adapters.save(self._peft, role, folder, identity=self.base.identity, head=self.heads.get(role))

    def fingerprint(self, role: str) -> str:
        """Return a hash of a role's weights, to check that they did not change."""
        return adapters.fingerprint(self.parameters(role))
