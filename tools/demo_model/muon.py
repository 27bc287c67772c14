"""Muon: momentum whose matrix updates are orthogonalised by a Newton-Schulz iteration (Keller Jordan, 2024)."""
import torch


def orthogonalised(g):
    """The nearest semi-orthogonal matrices to a batch g (n, rows, cols), roughly: singular values in 0.7 ... 1.2."""
    tall = g.shape[1] > g.shape[2]
    x = (g.mT if tall else g).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """For matrices only. A parameter whose rows are several matrices (q, k, v) names their number in its group's `parts`."""

    def __init__(self, groups, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(groups, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, parts=1))

    @torch.no_grad()
    def step(self):
        by_shape = {}
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(m, group["momentum"])  # Nesterov
                for part, g in zip(p.chunk(group["parts"]), update.chunk(group["parts"])):
                    by_shape.setdefault(g.shape, []).append((part, g, group))
        for (rows, cols), items in by_shape.items():  # one batched product a shape
            updates = orthogonalised(torch.stack([g for _, g, _ in items]))
            for (part, _, group), update in zip(items, updates):
                part.mul_(1 - group["lr"] * group["weight_decay"])
                part.add_(update, alpha=-group["lr"] * max(1, rows / cols) ** 0.5)
