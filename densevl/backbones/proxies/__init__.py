"""Vision-only models whose patch features say which places belong together.

Recipes use a proxy's features to control how a CLIP tower mixes its patches (ProxyCLIP, CorrCLIP, LPOSS, Trident).
"""

from densevl.backbones.proxies.base import KINDS, Proxy
from densevl.backbones.proxies.dinoiser import DinoiserHeads
from densevl.backbones.proxies.load import known_proxies, load_proxy

__all__ = ["KINDS", "DinoiserHeads", "Proxy", "known_proxies", "load_proxy"]
