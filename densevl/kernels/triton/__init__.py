"""Triton kernels, one file an operator, beside `kernels/`; imported when one runs, so CPU use never imports triton.

Each launching function is an operator of torch's dispatcher (`torch.ops.densevl`), a single node to torch.compile.

Every kernel is checked in Triton's interpreter and compiled ahead of time for sm_80 and sm_90 (docs/kernels.md).
"""
