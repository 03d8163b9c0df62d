"""Temporary."""
from __future__ import annotations
from contextlib import contextmanager
from dataclasses import dataclass
import torch

class Profile: ...

@dataclass(frozen=True, kw_only=True)
class Standard(Profile):
    decay: float = 0.999
    @property
    def name(self): return f"ema-{self.decay:g}"
    def share(self, n): return 1 - min(self.decay, (1 + n) / (10 + n))

@dataclass(frozen=True, kw_only=True)
class Power(Profile):
    gamma: float = 6.94
    width: float = 0.1
    @classmethod
    def of_width(cls, w): return cls(width=w)
    @property
    def name(self): return f"power-{self.width:g}"
    def share(self, n): return 1 - (1 - 1 / n) ** (self.gamma + 1)

class EMA:
    def __init__(self, module, profile):
        self.profile, self.updates = profile, 0
        self.tensors = {k: v.detach().clone() for k, v in module.state_dict().items()}
    @torch.no_grad()
    def update(self, module):
        self.updates += 1
        share = self.profile.share(self.updates)
        for k, v in module.state_dict().items():
            self.tensors[k].lerp_(v.to(self.tensors[k]), share) if v.is_floating_point() else self.tensors[k].copy_(v)
    def weights(self): return self.tensors
    def state_dict(self): return {"updates": self.updates, "tensors": self.tensors}
    def load_state_dict(self, s):
        self.updates = s["updates"]
        for k, v in s["tensors"].items(): self.tensors[k].copy_(v)
    @contextmanager
    def applied(self, module):
        was = {k: v.clone() for k, v in module.state_dict().items()}
        module.load_state_dict(self.tensors)
        try: yield
        finally: module.load_state_dict(was)
