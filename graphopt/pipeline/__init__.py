"""Passes, their text form, and the manager that runs and checks them."""

from graphopt.pipeline.base import Kind, OptionInfo, Pass, PassResult, Pipeline, Skipped, option
from graphopt.pipeline.context import Context
from graphopt.pipeline.registry import Registry, format_pipeline

__all__ = [
    "Context",
    "Kind",
    "OptionInfo",
    "Pass",
    "PassResult",
    "Pipeline",
    "Registry",
    "Skipped",
    "format_pipeline",
    "option",
]
