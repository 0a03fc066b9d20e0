"""Build classifiers that are cut in two, load pretrained weights, and keep trained ones."""
