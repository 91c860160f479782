"""The pipeline ``simplify``: every exact pass that needs no asking for, in an order that lets each prepare the next."""

SIMPLIFY = (
    "fold",
    "branches",
    "eliminate",
    "dedupe",
    "cse",
    "cancel",
    "layout",
    "split",
    "fuse-pad",
    "fuse-affine",
    "gemm",
    "recognize",
    "global-pool",
)
