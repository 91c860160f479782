"""One table of operators: what each computes in PyTorch, with gradients."""

from graphopt.training.ops import (  # noqa: F401  (each registers its operators)
    activation,
    elementwise,
    index,
    linear,
    normalization,
    pooling,
    quantization,
    reduction,
    resize,
    shape,
)
from graphopt.training.ops.table import OPERATORS, NodeInfo, Unsupported

__all__ = ["OPERATORS", "NodeInfo", "Unsupported"]
