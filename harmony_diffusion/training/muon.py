"""Muon for the matrices of a network and AdamW for all other parameters, as one optimizer."""

from collections.abc import Callable
from typing import Any

import torch


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` for chosen groups, `torch.optim.AdamW` for the others.

    Muon (Jordan et al., 2024) replaces the update of a matrix by the nearest matrix whose singular values are
    equal. It is meant for the inner matrices of a network, so biases, norms, convolutions and the first and
    last layers use AdamW. Its update is scaled to the size of an update of AdamW (Liu et al., 2025), so the
    same weight decay suits both.

    Args:
        groups: Parameter groups. The groups with a true entry `matrices` use Muon; their parameters have two
            dimensions. There must be groups of both kinds.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
        eps: Epsilon of AdamW.

    Raises:
        ValueError: A parameter for Muon does not have two dimensions, or a kind of group is missing.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, weight_decay: float, eps: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "matrices": False})
        matrices, others = self._by_kind()
        self.parts = (
            torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, eps=eps, fused=True),
        )
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Do one step of both optimizers."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self._share()

    def _by_kind(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        matrices = [group for group in self.param_groups if group["matrices"]]
        return matrices, [group for group in self.param_groups if not group["matrices"]]

    def _share(self) -> None:
        """Let both optimizers use the groups and the state of this one."""
        for part, groups in zip(self.parts, self._by_kind(), strict=True):
            part.param_groups, part.state = groups, self.state
