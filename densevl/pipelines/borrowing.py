"""Load the other models a recipe borrows from, its proxy and the encoder of SAM: those given, or the recipe's own."""

from __future__ import annotations

from pathlib import Path

from densevl.backbones.proxies import DinoiserHeads, Proxy, load_proxy
from densevl.errors import ModelError, RecipeError
from densevl.recipes import Recipe, get, names

SAM = "sam_vit_b"
SHIPPED, DINO = "mini-sam", "dino_vitb8"

Lender = Proxy | DinoiserHeads
"""A model that a recipe borrows from."""
Borrowed = str | Path | Lender | None


def borrow(
    recipe: Recipe | None, proxy: Borrowed, sam: Borrowed, device: str, also: frozenset[str] = frozenset()
) -> tuple[Lender | None, Lender | None]:
    """Load the proxy and the SAM encoder that a recipe reads. Each is None if the recipe does not read it.

    Args:
        recipe: None for a model without recipes.
        proxy, sam: a name or path for `load_proxy`, a loaded `Proxy`, or None for the recipe's own.
        device: where they are loaded. also: {"proxy"} if a refinement reads a proxy.

    Raises:
        RecipeError: If one is given that the recipe does not use.
        ModelError: If one cannot be loaded; the message names the option that gives another.
        WeightsError: If a file is damaged.
        MissingExtraError: If SAM is needed and `segment-anything` is not installed.
    """
    reads = (recipe.reads if recipe is not None else frozenset()) | also
    for given, option in ((proxy, "proxy"), (sam, "sam")):
        if given is not None and option not in reads:
            able = ", ".join(name for name in names() if option in get(name).reads)
            whose = f"recipe '{recipe.name}'" if recipe is not None else "this model"
            raise RecipeError(
                f"{whose} borrows nothing from {option}={_name(given)!r}; leave it out, or take {able}"
                + ", or refine='proxy'" * (option == "proxy")
            )
    usual = DINO if "proxy" in also else SHIPPED
    own = recipe.proxy.model if recipe is not None and recipe.proxy is not None else usual
    loaded_proxy = _load(recipe, proxy, own, "proxy", device) if "proxy" in reads else None
    if "proxy" in also and isinstance(loaded_proxy, DinoiserHeads):
        raise ModelError("refine='proxy' spreads by the features of a separate model; DINOiser's heads have none")
    loaded_sam = _load(recipe, sam, SAM, "sam", device) if "sam" in reads else None
    if loaded_sam is not None and not hasattr(loaded_sam, "last_attention"):
        raise ModelError(
            f"sam={loaded_sam.name!r} is not an encoder of SAM; take one of its checkpoints or '{SHIPPED}'"
        )
    return loaded_proxy, loaded_sam


def _name(given: Borrowed) -> str:
    return given.name if isinstance(given, Lender) else str(given)


def _load(recipe: Recipe | None, given: Borrowed, own: str, option: str, device: str) -> Lender:
    if isinstance(given, Lender):
        return given
    if given is not None:
        return DinoiserHeads.found_in(given) or load_proxy(given, device=device)
    try:
        return load_proxy(own, device=device)
    except ModelError as error:
        reads_it = recipe is not None and option in recipe.reads
        who = f"recipe '{recipe.name}'" if recipe is not None and reads_it else "refine 'proxy'"
        raise ModelError(
            f"{who} borrows from '{own}', which is not at hand: give another with {option}='{SHIPPED}' "
            f"(--{option} {SHIPPED}), which is in the package, or a weights file with {option}=FILE; {error}"
        ) from error
