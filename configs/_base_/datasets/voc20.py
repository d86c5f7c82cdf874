dataset = "voc20"
root = None  # looked for in $DENSEVL_DATA and ./data, as VOCdevkit/VOC2012
