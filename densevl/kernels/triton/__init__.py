"""Triton kernels, one file per operator; `kernels.ops` imports them when one runs, so CPU use never imports triton.

Every kernel is checked in Triton's interpreter and compiled ahead of time for sm_80 and sm_90 (docs/kernels.md).
"""
