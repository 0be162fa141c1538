"""Multiply-accumulates (MACs) of modules: by their linear layers, or counted by PyTorch."""

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


def linear_macs(module: nn.Module) -> int:
    """MACs of all linear layers of a module for one token."""
    return sum(m.in_features * m.out_features for m in module.modules() if isinstance(m, nn.Linear))


def counted_macs(module: nn.Module, *shape: int) -> int:
    """MACs of a module on an input of a shape, as PyTorch counts them without computing anything."""
    tensors = {name: tensor.to("meta") for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
    dtype = next((parameter.dtype for parameter in module.parameters()), None)
    with FlopCounterMode(display=False) as counter:
        functional_call(module, tensors, torch.empty(shape, device="meta", dtype=dtype))
    return counter.get_total_flops() // 2
