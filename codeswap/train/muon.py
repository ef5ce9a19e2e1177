"""Muon for the hidden matrices of a Transformer, AdamW for everything else, as one optimizer."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer


class MuonWithAdamW(Optimizer):
    """Updates of `matrices` are orthogonalised momentum (Muon, K. Jordan 2024), those of `others` AdamW's.

    Off-paper: on the demo's Stage 2 it needs about half of Adam's pairs (docs/log.md). Muon's step is scaled to AdamW's
    usual size (arXiv 2502.16982), so both take one learning rate. Needs whole matrices on every process: not for ZeRO.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float],
        decay: float,
    ) -> None:
        self._muon = Muon(list(matrices), lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        self._adam = AdamW(list(others), lr=lr, betas=betas, weight_decay=decay)
        super().__init__([*self._muon.param_groups, *self._adam.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Groups and state are held here once, so that schedules and checkpoints see a single optimizer."""
        self._muon.param_groups, self._adam.param_groups = self.param_groups[:1], self.param_groups[1:]
        self._muon.state = self._adam.state = self.state

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        self._muon.step()
        self._adam.step()
