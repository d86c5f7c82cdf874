model = "mini"
