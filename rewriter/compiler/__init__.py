"""``decompose`` and its report."""
