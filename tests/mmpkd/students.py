"""Helpers for tests of students: random weights, and a digest of everything that must not change in a module."""

from __future__ import annotations

import hashlib

import torch

from mmpkd.student import Student


def drawn(student: Student, spread: float) -> Student:
    """Draws weights from a normal distribution, since timm's leave attention flat and some layers at zero.."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * spread if parameter.ndim > 1 else parameter + noise * 0.1)
    return student.eval()


def everything(student: Student) -> str:
    """A digest of weights, gradients, flags and hooks of every module."""
    text = [(name, value.numpy().tobytes()) for name, value in student.state_dict().items()]
    flags = [(parameter.requires_grad, parameter.grad is None) for parameter in student.parameters()]
    modules = [
        (entry.training, getattr(entry, "fused_attn", None), len(entry._forward_hooks), len(entry._forward_pre_hooks))
        for entry in student.modules()
    ]
    return hashlib.sha256(repr((text, flags, modules)).encode()).hexdigest()
