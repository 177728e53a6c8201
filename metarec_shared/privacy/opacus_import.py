"""Opacus, imported without what it does to logging: it gives the root logger a handler, as only a program should."""

import logging

_root = logging.getLogger()
_before = list(_root.handlers), _root.level
try:
    from opacus.accountants import PRVAccountant
    from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent
    from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
finally:
    _root.handlers[:] = _before[0]
    _root.setLevel(_before[1])

__all__ = ["DPOptimizerFastGradientClipping", "PRVAccountant", "compute_rdp", "get_privacy_spent"]
