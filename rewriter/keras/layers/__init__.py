"""What each of Keras' layers is in torch."""
