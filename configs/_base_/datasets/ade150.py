dataset = "ade150"
root = None  # looked for in $DENSEVL_DATA and ./data, as ade/ADEChallengeData2016
