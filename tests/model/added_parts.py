"""Names of what is added to a source, and settings with which all of it is."""

ADDED = ("selectors.", "keys.", "bypasses.", "outputs.")

MATCHED = {"selector": "similarity", "bypass": "nearest+affine"}


PROBE = {"selector": "probe", "bypass": "linear", "span": 2, "layers": (2, 3, 5, 6)}
