"""Train and evaluate one classifier, without Ray."""
