"""Change training images: augment them one by one, and mix them with each other."""
