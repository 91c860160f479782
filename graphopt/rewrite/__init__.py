"""How exact passes change a graph: rules on a worklist, patterns, and one place that knows who reads what."""

from graphopt.rewrite.driver import RewritePass, Rule
from graphopt.rewrite.pattern import Any, Const, Match, Op, pattern_rule
from graphopt.rewrite.workbench import Workbench

__all__ = ["Any", "Const", "Match", "Op", "RewritePass", "Rule", "Workbench", "pattern_rule"]
