"""``DeepExplainer``: what is explained, in which context, and how the result looks."""
