dataset = "pc459"
root = None  # looked for in $DENSEVL_DATA and ./data, as VOCdevkit/VOC2010
