"""Find things in folders of pictures, by words and by example: python demo/search_folder.py [FOLDER [WORDS ...]]

Regions of all pictures are proposed, embedded and stored in densevl-out/demo-index.npz, so that a second run does not
repeat it. The models are those of the package, which know flat drawings: what they find in the photographs of
demo/images is chance.
"""

import sys
from pathlib import Path

from densevl.images import encode_png
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.regions.search import RegionSearch
from densevl.pipelines.regions.sheet import hit_sheet
from densevl.proposals import load_proposer
from densevl.proposals.pieces import PieceProposer

here = Path(__file__).parent
out = Path("densevl-out")
folders = [Path(sys.argv[1])] if len(sys.argv) > 1 else [here / "scenes", here / "images"]
words = sys.argv[2:] or ["penguin", "house", "sunflower"]

classify = RegionClassifier("mini", "cls_mask", proposals=PieceProposer(load_proposer("mini-sam")))
search = RegionSearch(classify, out / "demo-index.npz")
built = search.build(folders, forget=True)
print(f"{len(search.index.photos)} pictures, {len(search.index)} regions, {len(built.added)} pictures looked at")

finds = {word: [hit for hit in search.find(word) if hit.score > 0] for word in words}  # better than the words to avoid
if len(sys.argv) == 1:
    pizza = classify.embed(here / "scenes" / "water.png", boxes=[[31, 86, 76, 135]])
    finds["like this pizza"] = search.find(pizza, top=3)
for query, hits in finds.items():
    print(f"{query}: {', '.join(map(str, hits)) or 'nowhere'}")
    if hits:
        path = out / f"search-{query.replace(' ', '-')}.png"
        path.write_bytes(encode_png(hit_sheet(hits, query)))
        print("wrote", path)
