"""One recurrent model in TensorFlow, Keras and torch."""
