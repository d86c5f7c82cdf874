dataset = "cityscapes"
root = None  # looked for in $DENSEVL_DATA and ./data, as cityscapes
