"""Build networks that are cut in two, with pretrained weights."""
