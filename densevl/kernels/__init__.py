"""The arithmetic that everything else calls: attention between tokens, affinities, and decoding of scores to pixels.

One file an operator: its signature, its checks, the torch code that defines it and runs on the CPU, and when its Triton
kernel (`triton/`) takes over (see `dispatch`). Names load when first used: neither torch nor triton is imported here.

Made for inference: where gradients are asked for, torch runs. Half precision on the CPU is computed in float32. Shape
letters: B batch, A heads, N tokens, d head width, P width of compared features, E width of values, T text queries, H/W
pixels, Y/X window tokens per axis.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
