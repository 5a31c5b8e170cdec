"""What tests of students share: weights that make a difference, and all that must not change in a module."""

from __future__ import annotations

import hashlib

import torch

from mmpkd.student import Student


def drawn(student: Student, spread: float) -> Student:
    """Weights from a normal distribution: timm's own leave attention flat and some layers at zero. In eval mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * spread if parameter.ndim > 1 else parameter + noise * 0.1)
    return student.eval()


def everything(student: Student) -> str:
    """A digest of weights, gradients, flags and hooks of every module."""
    told = [(name, value.numpy().tobytes()) for name, value in student.state_dict().items()]
    flags = [(parameter.requires_grad, parameter.grad is None) for parameter in student.parameters()]
    modules = [
        (one.training, getattr(one, "fused_attn", None), len(one._forward_hooks), len(one._forward_pre_hooks))
        for one in student.modules()
    ]
    return hashlib.sha256(repr((told, flags, modules)).encode()).hexdigest()
