"""Find the operations at which attributions are lost."""
