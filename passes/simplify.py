"""The pipeline ``simplify``: every exact pass that needs no asking for, in an order that lets each prepare the next."""

SIMPLIFY = (
    "fold",
    "eliminate",
    "cancel",
    "fuse-pad",
    "fuse-affine",
)
