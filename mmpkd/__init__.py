"""Multimodal privileged knowledge distillation: one training run of an image-only ViT student."""
