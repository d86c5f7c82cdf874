dataset = "ade847"
root = None  # looked for in $DENSEVL_DATA and ./data, as ADE20K_2021_17_01
