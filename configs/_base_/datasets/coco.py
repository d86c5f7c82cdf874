dataset = "coco"
root = None  # looked for in $DENSEVL_DATA and ./data, as coco
