"""Which files of a folder are images. Imports no torch."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""What Pillow reads of the usual formats; timm by itself takes the first three only."""
