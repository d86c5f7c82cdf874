"""Kernels in the interpreter or on a device; a package, so that its conftest is not taken for the one above."""
