"""What tests share: models, comparisons, other people's explainers."""
