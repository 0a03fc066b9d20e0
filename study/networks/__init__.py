"""Build torchvision's and timm's networks, and cut them into blocks."""
