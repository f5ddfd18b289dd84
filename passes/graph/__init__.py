"""What a torch.fx graph says, and small changes to it."""
