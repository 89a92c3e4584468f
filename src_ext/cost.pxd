"""Arithmetic over per-replica columns: one value per slot, in place, nothing allocated.

The length of a call is that of its mask or, without one, of its output; other columns (columns.pxd)
may be longer, as the ledger's are.
"""

from warmlane._core.columns cimport Column, Scope
