"""densevl's own prompt templates by family, as plain data.

"broad" and "short" are composed like CLIP's 80 templates for ImageNet and its 7 best (43 photographs, 3 snapshots,
24 depictions, 8 toys, 2 games), "dense" that of ViLD's 14 (the photo, four scenes, three sizes in three phrasings), and
"scene" that of the five that MaskCLIP adds to the 80. "*" stands for "a" and "the", one template each.
"""

from __future__ import annotations


def _articles(*phrases: str) -> tuple[str, ...]:
    return tuple(phrase.replace("*", article) for phrase in phrases for article in ("a", "the"))


PHOTOGRAPHS = (
    *_articles(
        "a photograph of * {}.",
        "a sharp photograph of * {}.",
        "an out-of-focus photograph of * {}.",
        "a grainy photograph of * {}.",
        "an overexposed photograph of * {}.",
        "an underexposed photograph of * {}.",
        "a faded photograph of * {}.",
        "a heavily compressed photograph of * {}.",
        "a tiny thumbnail of * {}.",
        "a photograph of * {} in daylight.",
        "a photograph of * {} at night.",
        "a photograph of * {} in the shade.",
        "a photograph of * {} under lamps.",
        "a photograph of * {} from far away.",
        "a photograph of * {} that fills the frame.",
        "a photograph of * {} cut off at the edge.",
        "a photograph of * {} that is partly hidden.",
        "a photograph of * {} from above.",
        "a photograph of * big {}.",
        "a photograph of * little {}.",
        "a photograph of * old {}.",
    ),
    "a photograph of our {}.",
)
SNAPSHOTS = (*_articles("a quick snapshot of * {}."), "a quick snapshot of our {}.")
DEPICTIONS = _articles(
    "a pencil drawing of * {}.",
    "an oil painting of * {}.",
    "a watercolour of * {}.",
    "an ink illustration of * {}.",
    "a comic strip with * {}.",
    "line art of * {}.",
    "a clay model of * {}.",
    "a stone carving of * {}.",
    "a mural of * {}.",
    "a woodcut of * {}.",
    "a computer-generated image of * {}.",
    "needlework that shows * {}.",
)
TOYS = _articles("* wooden toy {}.", "* soft toy {}.", "* folded paper {}.", "* toy {} made of bricks.")
GAMES = _articles("* {} in a computer game.")

SETS: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "photo": ("a photo of a {}.",),
    "scene-photo": ("A photo of a {} in the scene",),
    "broad": (*PHOTOGRAPHS, *SNAPSHOTS, *DEPICTIONS, *TOYS, *GAMES),
    "short": (
        "a quick snapshot of a {}.",
        "a poor photograph of a {}.",
        "the folded paper {}.",
        "a photograph of a big {}.",
        "a {} in a computer game.",
        "a painting of a {}.",
        "a photograph of a little {}.",
    ),
    "dense": (
        "a photograph of a {}.",
        "a {} somewhere in the scene.",
        "the scene has a {} in it.",
        "a photograph of a scene with the {}.",
        "one {} among other things.",
        "a photograph of a little {}.",
        "a little {} somewhere in the scene.",
        "the scene has a little {} in it.",
        "a photograph of a medium-sized {}.",
        "a medium-sized {} somewhere in the scene.",
        "the scene has a medium-sized {} in it.",
        "a photograph of a big {}.",
        "a big {} somewhere in the scene.",
        "the scene has a big {} in it.",
    ),
    "plural": ("a photo of many {}.", "a photo of {}s."),  # of TIPSv2 and dino.txt, beside the seven of "simple"
    "scene": (
        "a {} somewhere in the scene.",
        "the {} somewhere in the scene.",
        "the scene has a {} in it.",
        "in this scene we see the {}.",
        "one {} in a scene with other things.",
    ),
    "drawing": (
        "a drawing of a {}.",
        "a flat illustration of a {}.",
        "clip art of a {}.",
        "a cartoon of a {}.",
        "an icon of a {}.",
        "a sketch of the {}.",
        "a painting of the {}.",
    ),
    "satellite": (
        "a satellite image of a {}.",
        "a satellite image of the {}.",
        "an aerial photograph of a {}.",
        "an aerial photograph of the {}.",
        "a {} seen from above.",
        "a {} on an orthophoto map.",
        "remote sensing imagery with a {}.",
    ),
    "street": (
        "a {} in a street scene.",
        "the {} in a street scene.",
        "a {} seen from a car.",
        "a {} seen through a windscreen.",
        "a {} at the roadside.",
        "a {} far down the road.",
        "a dashcam picture with a {}.",
    ),
    "medical": (
        "a medical image of a {}.",
        "a medical image that shows the {}.",
        "a clinical photograph of a {}.",
        "a scan with a {}.",
        "a {} under the microscope.",
        "an endoscopic view of a {}.",
        "a {} in a patient.",
    ),
}
