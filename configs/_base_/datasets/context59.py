dataset = "context59"
root = None  # looked for in $DENSEVL_DATA and ./data, as VOCdevkit/VOC2010
