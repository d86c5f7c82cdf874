dataset = "coco-stuff"
root = None  # looked for in $DENSEVL_DATA and ./data, as coco_stuff164k
